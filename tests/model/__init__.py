# SPDX-License-Identifier: Apache-2.0
"""A slow, obvious model of the comparator, and what is needed to hold an implementation against it.

packet.py   one frame, decoded
flow.py     what both sides have said on one flow: streams as dicts from position to byte, datagrams as bags
facts.py    what has been fed, and which epoch it belongs to
oracle.py   watches a schedule and the implementation's actions, and raises Violation when a rule is broken
events.py   the same for its events
toy.py      a comparator of the slow and obvious kind, which the oracle accepts; its mutants must be rejected
run.py      drives one implementation and the oracle through a schedule
minimise.py makes a failing schedule small
table.py    the language of the tables in test_rules_*.py
core.py     the C core behind the interface that run.py drives
verdict.py  the words that all of them share
"""
