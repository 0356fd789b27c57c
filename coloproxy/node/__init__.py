# SPDX-License-Identifier: Apache-2.0
"""`coloproxy node`: takes a VM from an image on disk to a protected pair, and keeps it so. docs/node.md.

facts      what a node knows when it decides
machine    the table: in this state, on this event, if that holds; nothing else decides
board      the facts of one node, its events in their order, and how it tells
play       takes the events, plays the table; history: what has come of it
work       its long actions: QEMU, disks (copying); tasks: one at a time
watch      our own QEMU: what it says, whether it lives; halt: its disk is full
peer       the other node: the heartbeat, the lease, the link; adverts: what the heartbeat carries
ownership  the arbiter: what it is asked, and told
plane      the data path, in the role of the moment; planes: tap_plane, filter_plane
commands   what an operator may ask for
status     what is said of all that; told, view: what a node tells, and how it is shown
setting    the pair's file, as one of the two nodes needs it
record     what is on disk
node       makes the parts, lets them run, ends them
"""
