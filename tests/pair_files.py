# SPDX-License-Identifier: Apache-2.0
"""A pair's file for tests: right as it is, and easily made wrong."""

from __future__ import annotations

PAIR = """\
name = "web"

[link]
primary = "192.0.2.1"
secondary = "192.0.2.2:9810"
psk_file = { primary = "/etc/a.psk", secondary = "/etc/b.psk" }

[[vm]]
name = "web"
qmp = "unix:/run/web.qmp"

[[vm.nic]]
name = "nic0"
mac = "52:54:00:12:34:56"
tap = { name = { primary = "webp", secondary = "webs" }, bridge = "br0" }
vm = { address = "unix:/run/web-nic0.sock" }
"""

ANOTHER_NIC = """
[[vm.nic]]
name = "nic1"
tap = { name = "other" }
vm = { address = "unix:/run/web-nic1.sock" }
"""

ANOTHER_VM = """
[[vm]]
name = "mail"
qmp = "unix:/run/mail.qmp"
[[vm.nic]]
name = "nic0"
tap = { name = "mail" }
vm = { address = "unix:/run/mail-nic0.sock" }
"""

NODE = """
[node]
address = { a = "192.0.2.1", b = "192.0.2.2" }

[[node.heartbeat.path]]
name = "link"
address = { a = "192.0.2.1:9820", b = "192.0.2.2:9820" }

[[node.disk]]
image = "/vms/web.qcow2"
"""
"""Behind PAIR. What comes behind it begins on line 27."""


def changed(old: str, new: str, text: str = PAIR) -> str:
    """`text` with one thing in another's place, which must be there once."""
    assert text.count(old) == 1, old
    return text.replace(old, new)
