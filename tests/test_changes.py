# SPDX-License-Identifier: Apache-2.0
"""What a reload may change."""

from __future__ import annotations

import pytest
from pair_files import ANOTHER_NIC, ANOTHER_VM, PAIR, changed

from coloproxy.pair import ROLES, Role, parse
from coloproxy.run.changes import changes, live_only

LINK = 'psk_file = { primary = "/etc/a.psk", secondary = "/etc/b.psk" }'
NIC = 'mac = "52:54:00:12:34:56"'
CASES: list[tuple[str, str, list[str], bool]] = [
    ("the same", PAIR, [], True),
    ("another comment", PAIR + "# later\n", [], True),
    ("a default, spelt out", PAIR + "vlans = []\n", [], True),
    ("announce", changed(NIC, NIC + '\nannounce = ["10.0.0.5"]'), ["vms[0].nics[0].announce"], True),
    ("vlans", changed(NIC, NIC + "\nvlans = [5, 6]"), ["vms[0].nics[0].vlans"], True),
    ("key", changed("/etc/a.psk", "/etc/c.psk"), ["link.psk_file"], True),
    ("the other host's key", changed("/etc/b.psk", "/etc/c.psk"), [], True),
    ("on_loss", changed(LINK, LINK + '\non_loss = "alone"'), ["link.on_loss"], True),
    (
        "alone_after",
        changed(LINK, LINK + '\non_loss = "alone"\nalone_after = "77s"'),
        ["link.alone_after", "link.on_loss"],
        True,
    ),
    ("log level", PAIR + '[process]\nlog_level = "debug"\n', ["process.log_level"], True),
    ("the name", changed('name = "web"\n\n[link]', 'name = "shop"\n\n[link]'), ["name"], False),
    ("an address", changed("192.0.2.2:9810", "192.0.2.3:9810"), ["link.secondary.host"], False),
    ("keepalive", changed(LINK, LINK + '\nkeepalive = "100ms"'), ["link.keepalive"], False),
    ("a TAP", changed('"webp"', '"web2"'), ["vms[0].nics[0].tap.name"], False),
    ("a MAC", changed("52:54:00:12:34:56", "52:54:00:12:34:57"), ["vms[0].nics[0].mac"], False),
    ("another NIC", PAIR + ANOTHER_NIC, ["vms[0].nics"], False),
    ("another VM", PAIR + ANOTHER_VM, ["vms"], False),
]


@pytest.mark.parametrize(("text", "wanted", "live"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_keys_that_differ(text: str, wanted: list[str], live: bool) -> None:
    before, after = parse(PAIR, "primary"), parse(text, "primary")
    assert changes(before, after) == wanted
    assert changes(after, before) == wanted
    assert all(live_only(key) for key in wanted) == live


def test_several_at_once() -> None:
    text = changed(NIC, NIC + '\nannounce = ["10.0.0.5"]', changed('"webp"', '"web2"'))
    assert changes(parse(PAIR, "primary"), parse(text, "primary")) == [
        "vms[0].nics[0].announce",
        "vms[0].nics[0].tap.name",
    ]


@pytest.mark.parametrize("role", ROLES)
def test_nothing_differs_from_itself(role: Role) -> None:
    text = PAIR + ANOTHER_NIC + ANOTHER_VM
    assert changes(parse(text, role), parse(text, role)) == []


@pytest.mark.parametrize(
    ("key", "live"),
    [
        ("process.log_level", True),
        ("vms[12].nics[3].vlans", True),
        ("vms[12].nics[3].vlans[0]", False),
        ("vms[0].nics[0].announced", False),
        ("xprocess.log_level", False),
        ("link.psk_file2", False),
        ("link.key", True),
        ("link", False),
        ("", False),
    ],
)
def test_live_keys_are_matched_whole(key: str, live: bool) -> None:
    assert live_only(key) == live
