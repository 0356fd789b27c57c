# SPDX-License-Identifier: Apache-2.0
"""The pair's file: what is taken, what is refused, and that each refusal names the line."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pair_files import ANOTHER_NIC, ANOTHER_VM, NODE, PAIR, changed
from pydantic_core import PydanticCustomError

from coloproxy.checkpoint_actions import ON_DEMAND_ONLY, Timing
from coloproxy.checkpoint_policy import PolicyOptions
from coloproxy.comparator import Comparator
from coloproxy.errors import ConfigError
from coloproxy.pair.config import ROLES, Pair, Role, load, parse
from coloproxy.pair.describe import defaults
from coloproxy.pair.positions import key_lines
from coloproxy.pair.units import (
    Account,
    Count,
    Duration,
    EndpointText,
    FilePath,
    Interface,
    Ip,
    Mac,
    Name,
    Namespace,
    Place,
    Size,
    format_duration,
    format_size,
)
from coloproxy.recording import RecordOptions, RingOptions

MS, S = 1_000_000, 1_000_000_000


def problems(text: str, role: Role = "primary") -> list[str]:
    with pytest.raises(ConfigError) as caught:
        parse(text, role)
    assert str(caught.value) == "\n".join(caught.value.problems)
    return list(caught.value.problems)


# ------------------------------------------------------------------- what it makes


def test_each_host_gets_its_own_values() -> None:
    primary, secondary = parse(PAIR, "primary"), parse(PAIR, "secondary")
    assert (primary.role, primary.peer_role) == ("primary", "secondary")
    assert (secondary.role, secondary.peer_role) == ("secondary", "primary")
    assert (primary.link.psk_file, secondary.link.psk_file) == ("/etc/a.psk", "/etc/b.psk")
    assert (primary.vms[0].nics[0].tap.name, secondary.vms[0].nics[0].tap.name) == ("webp", "webs")
    assert primary.vms[0].nics[0].tap.bridge == secondary.vms[0].nics[0].tap.bridge == "br0"
    assert str(primary.control_socket) == "/run/coloproxy/web-primary.sock"
    assert str(secondary.control_socket) == "/run/coloproxy/web-secondary.sock"


def test_whole_tables_for_each_host() -> None:
    text = changed(
        'vm = { address = "unix:/run/web-nic0.sock" }',
        'vm = { primary = { kind = "stream", address = "tcp:127.0.0.1:99" },'
        ' secondary = { kind = "packet", name = "v0", netns = "web" } }',
    )
    assert str(parse(text, "primary").vms[0].nics[0].vm.address) == "tcp:127.0.0.1:99"
    side = parse(text, "secondary").vms[0].nics[0].vm
    assert (side.kind, side.name, side.netns, side.is_socket) == ("packet", "v0", "web", False)


def test_a_role_left_out_has_the_default() -> None:
    text = changed('bridge = "br0"', 'bridge = { secondary = "br7" }')
    assert parse(text, "primary").vms[0].nics[0].tap.bridge is None
    assert parse(text, "secondary").vms[0].nics[0].tap.bridge == "br7"


def test_the_secondary_may_listen_everywhere() -> None:
    text = changed('"192.0.2.2:9810"', '{ primary = "192.0.2.2:9810", secondary = ":9810" }')
    assert parse(text, "primary").link.secondary.host == "192.0.2.2"
    assert parse(text, "secondary").link.secondary.host == ""
    assert problems(changed('"192.0.2.2:9810"', '":9810"')) == [
        "pair.toml:5: link.secondary: the host is missing: the primary needs to know where to connect to"
    ]


def test_defaults_are_those_of_the_parts_they_are_for() -> None:
    pair = parse(PAIR, "primary")
    assert pair.checkpoint.timing() == Timing()
    assert (pair.compare.recording("web"), pair.compare.ring("web")) == (None, None)
    Comparator(**pair.compare.options())  # the comparator takes them all


def test_what_is_given_gets_to_the_parts_it_is_for() -> None:
    more = """
[checkpoint]
period = "2s"
min_interval = "5ms"
qmp_deadline = "750ms"
qmp_patience = 9
[compare]
compare_timeout = "1.5s"
gap_timeout = "7ms"
max_queue_size = 11
max_flow_bytes = "64KiB"
max_flows = 12
max_fragments = 13
max_frames = 14
max_bytes = "1MiB"
record = "/r/{vm}.pcapng"
record_size = "1MiB"
record_time = "1h"
record_files = 3
record_ring = "10s"
record_dir = "/d/{vm}"
record_ring_bytes = "1MiB"
"""
    pair = parse(PAIR + more, "secondary")
    assert pair.checkpoint.timing() == Timing(2000, min_interval=5 * MS, deadline=750 * MS, patience=9)
    assert pair.compare.options() == {
        "compare_timeout": 1500 * MS,
        "gap_window": 7 * MS,
        "max_flow_frames": 11,
        "max_flow_bytes": 65536,
        "max_flows": 12,
        "max_fragments": 13,
        "max_frames": 14,
        "max_bytes": 1 << 20,
    }
    assert pair.compare.recording("web") == RecordOptions(Path("/r/web.pcapng"), 1 << 20, 3600 * S, 3)
    assert pair.compare.ring("web") == RingOptions(Path("/d/web"), 10 * S, 1 << 20)


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        ("", PolicyOptions()),
        ('period = "2s"', PolicyOptions()),  # QEMU's own
        ('back_end = "command"\ncommand = ["/c"]\nperiod = "2s"', PolicyOptions(period=2 * S)),
        (
            'policy = "adaptive"\nquiet = "7ms"\nbudget = 9\nmin_interval = "3ms"',
            PolicyOptions("adaptive", min_interval=3 * MS, quiet=7 * MS, budget=9),
        ),
    ],
)
def test_the_checkpoint_policy(table: str, expected: PolicyOptions) -> None:
    assert parse(f"{PAIR}[checkpoint]\n{table}\n", "primary").checkpoint.pacing() == expected


def test_on_demand_only_is_the_default_period() -> None:
    assert parse(PAIR, "primary").checkpoint.timing().checkpoint_delay_ms == ON_DEMAND_ONLY


def test_a_pair_never_changes() -> None:
    pair = parse(PAIR, "primary")
    with pytest.raises(ValueError, match="frozen"):
        pair.name = "other"
    with pytest.raises(ValueError, match="frozen"):
        pair.vms[0].nics[0].tap.mtu = 9000


def test_several_vms_and_nics() -> None:
    text = PAIR + ANOTHER_NIC + ANOTHER_VM
    pair = parse(text, "primary")
    assert [(vm.name, [nic.name for nic in vm.nics]) for vm in pair.vms] == [
        ("web", ["nic0", "nic1"]),
        ("mail", ["nic0"]),
    ]


# ------------------------------------------------------------------- what it refuses

WRONG: list[tuple[str, str, str]] = [
    # in the place of, this, is told as
    ('name = "web"\n\n[link]', 'nme = "web"\n\n[link]', '1: nme: unknown key, did you mean "name"?'),
    ('name = "web"\n\n[link]', 'name = "a/b"\n\n[link]', "1: name: must be 1 to 63 letters"),
    ('primary = "192.0.2.1"', "primary = 3", "4: link.primary: must be a text, not the number 3"),
    ('primary = "192.0.2.1"', 'primary = "host"', "4: link.primary: 'host' is no IPv4 or IPv6 address"),
    ('primary = "192.0.2.1"', 'primry = "192.0.2.1"', '4: link.primry: unknown key, did you mean "primary"?'),
    ('primary = "192.0.2.1"', "keepalive = 250", "4: link.keepalive: needs a unit"),
    ('primary = "192.0.2.1"', 'keepalive = "250"', "4: link.keepalive: must be a number with a unit"),
    ('primary = "192.0.2.1"', 'keepalive = "2h"', "4: link.keepalive: must be between 10ms and 1min"),
    ('primary = "192.0.2.1"', 'timeout = "400ms"', "4: link.timeout: timeout must be at least two keepalives"),
    ('primary = "192.0.2.1"', 'keepalive = "2s"', "4: link.keepalive: timeout must be at least two keepalives"),
    ('primary = "192.0.2.1"', 'send_buffer = "32"', "4: link.send_buffer: must be a number with a unit"),
    ('primary = "192.0.2.1"', 'security = "none"', '4: link.security: must be one of "psk", "certificates", "plain"'),
    ('primary = "192.0.2.1"', 'security = "plain"', '6: link.psk_file.primary: is only used with security = "psk"'),
    ('primary = "192.0.2.1"', 'ca = "/ca"', '4: link.ca: is only used with security = "certificates"'),
    ('primary = "192.0.2.1"', 'alone_after = "9s"', '4: link.alone_after: is only used with on_loss = "alone"'),
    ('primary = "192.0.2.1"', 'on_loss = { primary = "hold" }', "4: link.on_loss: must be the same on both hosts"),
    ('"192.0.2.2:9810"', '"unix:/a"', '5: link.secondary: must be "HOST:PORT"'),
    ('"192.0.2.2:9810"', '"192.0.2.2"', "5: link.secondary: '192.0.2.2': the port is missing"),
    ('"192.0.2.2:9810"', '"192.0.2.2:0"', "5: link.secondary: '192.0.2.2:0': port 0"),
    ('"192.0.2.2:9810"', '{ primary = "h:1" }', "5: link.secondary: has no value for the secondary"),
    ('"192.0.2.2:9810"', '{ primary = "h:1", secondry = "h:1" }', "5: link.secondary.secondry: unknown key"),
    ('secondary = "192.0.2.2:9810"\n', "", "3: link.secondary: is missing"),
    ('psk_file = { primary = "/etc/a.psk", secondary = "/etc/b.psk" }', "", "3: link.psk_file: is missing: security"),
    ('primary = "/etc/a.psk"', 'primary = "a.psk"', "6: link.psk_file.primary: must be an absolute path"),
    ('secondary = "/etc/b.psk"', 'secondary = ""', "6: link.psk_file.secondary: must be an absolute path"),
    ('qmp = "unix:/run/web.qmp"', "", '8: vm.web.qmp: is missing: checkpoint.back_end = "qmp" needs it'),
    ('qmp = "unix:/run/web.qmp"', 'qmp = "tcp:a:1"', "10: vm.web.qmp: 'tcp:a:1': leave the tcp: out"),
    ('qmp = "unix:/run/web.qmp"', f'qmp = "unix:/{"x" * 107}"', "10: vm.web.qmp: is longer than the 107 bytes"),
    ("52:54:00:12:34:56", "52-54-00-12-34-56", '14: vm.web.nic[0].mac: must be written as "52:54:00:12:34:56"'),
    ("52:54:00:12:34:56", "53:54:00:12:34:56", "14: vm.web.nic[0].mac: is a multicast address"),
    ('name = { primary = "webp"', 'name = { primary = "0123456789abcdef"', "15: vm.web.nic[0].tap.name.primary: "),
    ('secondary = "webs"', 'secondary = "a%d"', "15: vm.web.nic[0].tap.name.secondary: 'a%d' can't be the name"),
    ('bridge = "br0"', "mtu = 67", "15: vm.web.nic[0].tap.mtu: must be between 68 and 65521"),
    ('bridge = "br0"', "mtu = 1500.0", "15: vm.web.nic[0].tap.mtu: must be a whole number, not the number 1500.0"),
    ('bridge = "br0"', "mtu = true", "15: vm.web.nic[0].tap.mtu: must be a whole number, not true"),
    ('bridge = "br0"', 'mtu = "1500"', '15: vm.web.nic[0].tap.mtu: must be a whole number, not the text "1500"'),
    ('bridge = "br0"', "mtu = 2026-01-01", "15: vm.web.nic[0].tap.mtu: must be a whole number, not the text"),
    ('bridge = "br0"', "mtu = 123456789012345678901234567890", "15: vm.web.nic[0].tap.mtu: "),
    ('bridge = "br0"', "vnet_hdr = 1", "15: vm.web.nic[0].tap.vnet_hdr: must be true or false, not the number 1"),
    ('bridge = "br0"', "vnet_hdr = true", "15: vm.web.nic[0].tap.vnet_hdr: must be false: QEMU's -netdev stream"),
    ('bridge = "br0"', "bridge = []", "15: vm.web.nic[0].tap.bridge: must be a text, not a list"),
    ('"unix:/run/web-nic0.sock"', '"/run/web-nic0.sock"', '16: vm.web.nic[0].vm.address: must be "unix:/PATH"'),
    ('"unix:/run/web-nic0.sock"', '"unix:run"', "16: vm.web.nic[0].vm.address: must be an absolute path"),
    ('"unix:/run/web-nic0.sock"', '"udp:a:1"', "16: vm.web.nic[0].vm.address: must begin with unix: or tcp: for"),
    ('"unix:/run/web-nic0.sock"', '"unix:/run/web.qmp"', "16: vm.web.nic[0].vm.address: unix:/run/web.qmp is used"),
    ("vm = { address", "vm = { vnet_hdr = true, address", "16: vm.web.nic[0].vm.vnet_hdr: must be false: QEMU's"),
    ("vm = { address", 'vm = { kind = "socket", address', "16: vm.web.nic[0].vm.address: must begin with tcp: for"),
    ("vm = { address", 'vm = { kind = "dgram", address', "16: vm.web.nic[0].vm.local: is missing"),
    ("vm = { address", 'vm = { kind = "tap", address', "16: vm.web.nic[0].vm.name: is missing"),
    ("vm = { address", 'vm = { local = "unix:/x", address', '16: vm.web.nic[0].vm.local: is only used with kind'),
    ("vm = { address", 'vm = { name = "x", address', "16: vm.web.nic[0].vm.name: is only used with interfaces"),
    ("vm = { address", "vm = { adress", '16: vm.web.nic[0].vm.adress: unknown key, did you mean "address"?'),
    (
        '{ address = "unix:/run/web-nic0.sock" }',
        '{ kind = "socket", address = "tcp:[::1]:9" }',
        "16: vm.web.nic[0].vm.address: must not be IPv6",
    ),
    (
        '{ address = "unix:/run/web-nic0.sock" }',
        '{ kind = "dgram", address = "unix:/a", local = "udp:h:1" }',
        "16: vm.web.nic[0].vm.local: must begin as address does",
    ),
    (
        '{ address = "unix:/run/web-nic0.sock" }',
        '{ kind = "packet", name = "v0", vnet_hdr = true }',
        "16: vm.web.nic[0].vm.vnet_hdr: must be the same for tap and vm",
    ),
    (
        '{ address = "unix:/run/web-nic0.sock" }',
        '{ kind = "tap", name = "webp" }',
        "16: vm.web.nic[0].vm.name: interface webp is used twice",
    ),
    ('vm = { address = "unix:/run/web-nic0.sock" }', "", "12: vm.web.nic[0].vm: is missing"),
    ("[[vm.nic]]", "[[vm.nics]]", '12: vm.web.nics: unknown key, did you mean "nic"?'),
]  # fmt: skip


def test_as_many_nics_and_queues_as_the_data_path_has_room_for() -> None:
    nics = "".join(ANOTHER_NIC.replace("nic1", f"nic{n}").replace('"other"', f'"tap{n}"') for n in range(1, 16))
    assert len(parse(PAIR + nics, "primary").vms[0].nics) == 16
    one_more = ANOTHER_NIC.replace("nic1", "nic16").replace('"other"', '"tap16"')
    assert problems(PAIR + nics + one_more) == ["pair.toml:12: vm.web.nic: must have at most 16"]
    tap = 'bridge = "br0"'
    assert parse(changed(tap, tap + ", queues = 8"), "primary").vms[0].nics[0].tap.queues == 8
    assert len(problems(changed(tap, tap + ", queues = 9"))) == 1


@pytest.mark.parametrize(("old", "new", "told"), WRONG, ids=[f"{new[:24]}-{told[:24]}" for _, new, told in WRONG])
def test_refused_with_line_and_key(old: str, new: str, told: str) -> None:
    found = problems(changed(old, new))
    assert any(problem.startswith(f"pair.toml:{told}") for problem in found), found


MORE_WRONG: list[tuple[str, str]] = [
    ('announce = ["host"]', "17: vm.web.nic[0].announce[0]: 'host' is no IPv4"),
    ('announce = [\n"203.0.113.7",\n"ff02::1"]', "19: vm.web.nic[0].announce[1]: 'ff02::1' is not the address of one"),
    ("vlans = [1, 1]", "17: vm.web.nic[0].vlans[1]: 1 stands here twice"),
    ("vlans = [4095]", "17: vm.web.nic[0].vlans[0]: must be between 1 and 4094"),
    ("vlans = 7", "17: vm.web.nic[0].vlans: must be a list, not the number 7"),
    (ANOTHER_NIC.replace("nic1", "nic0"), "19: vm.web.nic[1].name: nic0 is used twice"),
    (ANOTHER_NIC.replace("other", "webs"), "20: vm.web.nic[1].tap.name: interface webs is used twice"),
    (ANOTHER_NIC.replace("web-nic1", "web-nic0"), "21: vm.web.nic[1].vm.address: unix:/run/web-nic0.sock is used"),
    (ANOTHER_VM.replace('"mail"\nqmp', '"web"\nqmp'), "19: vm.web.name: web is used twice"),
    (ANOTHER_VM + '[compare]\nrecord = "/r.pcapng"', "26: compare.record: needs {vm} in it"),
    ('[compare]\nrecord_files = 3', "18: compare.record_files: is only used with record"),
    ('[compare]\nrecord = "/r"\nrecord_files = 3', "19: compare.record_files: needs record_size or record_time"),
    ('[compare]\nrecord_ring = "1s"', "18: compare.record_ring: needs record_dir"),
    ('[compare]\nrecord_dir = "/d"', "18: compare.record_dir: is only used with record_ring"),
    ("[compare]\nmax_flows = { primary = 1, secondary = 2 }", "18: compare.max_flows: must be the same on both hosts"),
    ('[checkpoint]\nback_end = "command"', "17: checkpoint.command: is missing"),
    ('[checkpoint]\nback_end = "command"\ncommand = []', "19: checkpoint.command: is empty"),
    ('[checkpoint]\nback_end = "command"\ncommand = ["a"]', "19: checkpoint.command[0]: must be the program's"),
    ('[checkpoint]\ncommand = ["/a"]', '18: checkpoint.command: is only used with back_end = "command"'),
    ('[checkpoint]\nback_end = "none"\nperiod = "1s"', "19: checkpoint.period: is only used with a back end that"),
    ('[checkpoint]\nback_end = "none"\npolicy = "adaptive"', "19: checkpoint.policy: is only used with a back end"),
    ('[checkpoint]\nquiet = "7ms"', '18: checkpoint.quiet: is only used with policy = "adaptive"'),
    ('[checkpoint]\nbudget = 7', '18: checkpoint.budget: is only used with policy = "adaptive"'),
    ('[checkpoint]\npolicy = "adaptive"\nbudget = 51', "19: checkpoint.budget: must be between 1 and 50"),
    ('[checkpoint]\nperiod = "1.0005s"', "18: checkpoint.period: must be whole milliseconds"),
    ('[control]\nsocket = "/run/web.qmp"', "10: vm.web.qmp: unix:/run/web.qmp is used twice"),
    ("[control]\nmode = 660", "18: control.mode: must be between 0o600 and 0o777"),
    ('[process]\ngroup = "g"', "18: process.group: is only used with user"),
    ('[process]\nuser = "a b"', "18: process.user: 'a b' can't be the name"),
    ("[other]", "17: other: unknown key; there are name, link,"),
    ('["strange key"]', '17: "strange key": unknown key'),
    ("[vm.filters]\nmirror = 9001", "18: vm.web.filters.mirror: port 9001 is used twice"),
]  # fmt: skip


@pytest.mark.parametrize(("more", "told"), MORE_WRONG, ids=[told[:40] for _, told in MORE_WRONG])
def test_more_is_refused_with_line_and_key(more: str, told: str) -> None:
    found = problems(PAIR + more)
    assert any(problem.startswith(f"pair.toml:{told}") for problem in found), found


NODE_WRONG: list[tuple[str, str]] = [
    # behind PAIR and NODE
    (
        "[[node.heartbeat.path]]\nname = 'b'\naddress = { a = '192.0.2.1:1' }",
        "29: node.heartbeat.path[1].address: has no value for host b",
    ),
    ("[node.heartbeat]\ntimeout = '99ms'", "28: node.heartbeat.timeout: must be at least three intervals"),
    ("[node.arbiter]\nkind = 'etcd'", "27: node.arbiter.etcd: is missing: kind"),
    ("[node.arbiter]\nkind = 'command'", "27: node.arbiter.command: is missing: kind"),
    ("[node.arbiter]\ncommand = ['/a']", '28: node.arbiter.command: is only used with kind = "command"'),
    ("[node.arbiter]\nfence = { agent = 'x' }", '28: node.arbiter.fence: is only used with kind = "fence"'),
    (
        "[node.arbiter]\nkind = 'fence'\nfence = { agent = 'x', options = ['ip=1', 'ip'] }",
        "29: node.arbiter.fence.options[1]: must be NAME=VALUE, not 'ip'",
    ),
    (
        "[node.arbiter]\nkind = 'command'\ncommand = ['/a']\non_partition = 'primary'",
        '30: node.arbiter.on_partition: is only used with kind = "none"',
    ),
    ("[checkpoint]\nback_end = 'none'", '28: checkpoint.back_end: must be "qmp" with [node]'),
    (ANOTHER_VM, "8: vm: must be one with [node], not 2"),
]  # fmt: skip


@pytest.mark.parametrize(("more", "told"), NODE_WRONG, ids=[told[:40] for _, told in NODE_WRONG])
def test_a_node_is_refused_with_line_and_key(more: str, told: str) -> None:
    found = problems(PAIR + NODE + more)
    assert any(problem.startswith(f"pair.toml:{told}") for problem in found), found


def test_a_node_needs_to_know_where_the_link_listens_on_either_host() -> None:
    text = changed('"192.0.2.2:9810"', '{ a = "192.0.2.1:9810", b = ":9810" }') + NODE
    assert problems(text) == [
        "pair.toml:5: link.secondary.b: the host is missing: the primary needs to know where to connect to"
    ]


def test_the_two_hosts_by_their_names() -> None:
    a, b = (parse(PAIR + NODE, role) for role in ROLES)
    assert a.node is not None and b.node is not None
    assert (a.node.address, b.node.address) == ("192.0.2.1", "192.0.2.2")
    assert [str(pair.node.heartbeat.paths[0].address) for pair in (a, b) if pair.node] == [
        "192.0.2.1:9820",
        "192.0.2.2:9820",
    ]
    assert a.vms == parse(PAIR, "primary").vms


def test_a_host_in_another_role() -> None:
    """The link listens on the secondary's host, whichever that is."""
    text = changed('"192.0.2.2:9810"', '{ a = "192.0.2.1:9810", b = "192.0.2.2:9810" }') + NODE
    a, b = (parse(text, role) for role in ROLES)
    swapped = b.in_role("primary", listener=a)
    assert (swapped.role, str(swapped.link.secondary)) == ("primary", "192.0.2.1:9810")
    assert swapped.link.psk_file == "/etc/b.psk"
    assert (b.role, str(b.link.secondary)) == ("secondary", "192.0.2.2:9810")


def test_a_nodes_monitor_is_its_own() -> None:
    assert parse(changed('qmp = "unix:/run/web.qmp"', "") + NODE, "primary").vms[0].qmp is None


def test_all_errors_at_once_in_the_files_order() -> None:
    text = changed('primary = "192.0.2.1"', 'keepalive = "x"', changed('bridge = "br0"', 'mtu = 1, queues = "a"'))
    assert [line.partition(": ")[0] for line in problems(text + "\n[process]\ngroup = 'g'")] == [
        "pair.toml:4",  # of types
        "pair.toml:15",
        "pair.toml:15",
        "pair.toml:19",  # and of one key against another, where the table is right for itself
    ]


def test_an_error_of_both_hosts_is_told_once() -> None:
    assert len(problems(changed('bridge = "br0"', "mtu = 1"))) == 1


def test_a_wrong_element_is_not_a_missing_one() -> None:
    assert len(problems(changed("52:54:00:12:34:56", "x"))) == 1


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("a = \nb", "pair.toml:1:5: invalid value"),
        ("a = 1\na = 2", "pair.toml:2:6: cannot overwrite a value"),
        ("a = 1\n[", "pair.toml:2:2: "),
        ('a = "', "pair.toml:1:6: "),
        ("a" + "=[" + "[" * 5000, "pair.toml: tables or lists are nested too deeply"),
        ("", "pair.toml:1: name: is missing"),
        ("vm = 3", "pair.toml:1: vm: must be a list, not the number 3"),
        ("vm = []", "pair.toml:1: vm: must have at least 1"),
        ("vm = [1]", "pair.toml:1: vm[0]: must be a table, not the number 1"),
        ("link = 3", "pair.toml:1: link: must be a table, not the number 3"),
    ],
)
def test_broken_documents(text: str, told: str) -> None:
    assert any(problem.startswith(told) for problem in problems(text))


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    bad = tmp_path / "pair.toml"
    with pytest.raises(ConfigError, match=r"pair.toml: No such file or directory"):
        load(bad, "primary")
    bad.write_bytes(b"a = 1\nb = '\xff'\n")
    with pytest.raises(ConfigError, match=r"pair.toml:2: is not UTF-8"):
        load(bad, "primary")
    bad.write_bytes(PAIR.replace("\n", "\r\n").encode())
    assert load(bad, "secondary") == parse(PAIR, "secondary")
    bad.write_bytes(changed('bridge = "br0"', "mtu = 1").replace("\n", "\r\n").encode())
    with pytest.raises(ConfigError, match=r"pair.toml:15: vm.web"):
        load(bad, "primary")


# ------------------------------------------------------------------- lines

DOCUMENT = '''\
# a = 1
top.dotted = 1
"quoted # key" = 2
[table]
text = """
[no.header]
k = "v" \\""" """"" # quotes right before the end
raw = \'\'\'
\'\'\'
list = [ # comment, with = and [
  1, [2,
  3], { inner = "}" },
]
[table.sub."x.y"]
z = { a = { b = 1 }, c.d = 2 }
[[many]]
a = 1979-05-27 07:32:00Z
[[many.deep]]
b = 1
[many.deep.sub]
c = 1
[[many]]
[[many.deep]]
d = 0xff
'''
LINES = {
    ("top",): 2, ("top", "dotted"): 2, ("quoted # key",): 3, ("table",): 4, ("table", "text"): 5, ("table", "raw"): 8,
    ("table", "list"): 10, ("table", "list", 0): 11, ("table", "list", 1): 11, ("table", "list", 1, 0): 11,
    ("table", "list", 1, 1): 12, ("table", "list", 2): 12, ("table", "list", 2, "inner"): 12,
    ("table", "sub"): 14, ("table", "sub", "x.y"): 14, ("table", "sub", "x.y", "z"): 15,
    ("table", "sub", "x.y", "z", "a"): 15, ("table", "sub", "x.y", "z", "a", "b"): 15,
    ("table", "sub", "x.y", "z", "c"): 15, ("table", "sub", "x.y", "z", "c", "d"): 15,
    ("many",): 16, ("many", 0): 16, ("many", 0, "a"): 17, ("many", 0, "deep"): 18, ("many", 0, "deep", 0): 18,
    ("many", 0, "deep", 0, "b"): 19, ("many", 0, "deep", 0, "sub"): 20, ("many", 0, "deep", 0, "sub", "c"): 21,
    ("many", 1): 22, ("many", 1, "deep"): 23, ("many", 1, "deep", 0): 23, ("many", 1, "deep", 0, "d"): 24,
}  # fmt: skip


def paths(document: Any, at: tuple[str | int, ...] = ()) -> set[tuple[str | int, ...]]:
    inside: Any = ()
    if isinstance(document, dict):
        inside = document.items()
    elif isinstance(document, list):
        inside = enumerate(document)
    return {path for key, item in inside for path in ({(*at, key)} | paths(item, (*at, key)))}


def test_lines_of_keys() -> None:
    assert key_lines(DOCUMENT) == LINES
    assert set(LINES) == paths(tomllib.loads(DOCUMENT))


TEXTS = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=8)
VALUES = st.recursive(
    st.integers(-5, 5) | st.booleans() | TEXTS | st.floats(allow_nan=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=8,
)


def quoted(text: str) -> str:
    return '"' + "".join(c if c not in '"\\' and c.isprintable() else f"\\U{ord(c):08x}" for c in text) + '"'


def written(value: Any, newline: str) -> str:
    """TOML of a value; lists are broken by `newline`."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return quoted(value)
    if isinstance(value, list):
        return "[" + "".join(f"{newline}{written(item, newline)}," for item in value) + newline + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{quoted(key)} = {written(item, newline)}" for key, item in value.items()) + "}"
    return repr(value)


@given(st.dictionaries(TEXTS, VALUES, max_size=4), st.sampled_from(["", "\n", "# ]\n"]))
def test_every_key_of_a_valid_document_has_its_line(document: dict[str, Any], newline: str) -> None:
    text, starts = "", {}
    for key, value in document.items():
        starts[key] = text.count("\n") + 1
        text += f"{quoted(key)} = {written(value, newline)} # {key!r}\n"
    assert tomllib.loads(text) == document
    lines = key_lines(text)
    assert set(lines) == paths(document)
    assert {path[0]: line for path, line in lines.items() if len(path) == 1} == starts


@given(st.text(max_size=200) | st.text("[]{}=.,\"'\n# ab1", max_size=60))
def test_no_text_does_more_harm_than_a_config_error(text: str) -> None:
    with pytest.raises(ConfigError):
        parse(text, "primary")


KEYS = sorted({step for path in paths(tomllib.loads(defaults())) for step in path if isinstance(step, str)})
ODD = VALUES | st.sampled_from(
    ["unix:/x", "tcp:h:1", "1s", "1MiB", "psk", "plain", "qmp", "command", "tap", "packet", "dgram", 9000, True]
)
ODD |= st.dictionaries(st.sampled_from([*ROLES, "secondry"]), ODD, min_size=1)


@given(st.data())
def test_a_changed_file_is_right_or_a_config_error(data: st.DataObject) -> None:
    """Whatever stands where: never another exception, and each problem names a line of the file."""
    document = tomllib.loads(data.draw(st.sampled_from([PAIR, PAIR + ANOTHER_NIC + ANOTHER_VM, defaults()])))
    for _ in range(data.draw(st.integers(1, 3))):
        *around, last = data.draw(st.sampled_from(sorted(paths(document), key=str)))
        inside: Any = document
        for step in around:
            inside = inside[step]
        if data.draw(st.booleans()):
            inside[last] = data.draw(ODD)
        elif isinstance(inside, dict):
            inside[data.draw(st.sampled_from(KEYS))] = data.draw(ODD)
        else:
            del inside[last]
    text = "".join(f"{quoted(key)} = {written(value, chr(10))}\n" for key, value in document.items())
    assert tomllib.loads(text) == document
    for role in ROLES:
        try:
            assert parse(text, role).role == role
        except ConfigError as error:
            for problem in error.problems:
                line = int(problem.split(":")[1])
                assert 1 <= line <= text.count("\n") + 1
                assert problem.isprintable()


# ------------------------------------------------------------------- values


@pytest.mark.parametrize(
    ("unit", "text", "made"),
    [
        (Duration(), "250ms", 250 * MS),
        (Duration(), "3 s", 3 * S),
        (Duration(), "0.5s", S // 2),
        (Duration(), "2min", 120 * S),
        (Duration(0), "0s", 0),
        (Duration(1), "1.5us", 1500),
        (Size(), "32MiB", 32 << 20),
        (Size(), "32M", 32 << 20),
        (Size(), "1.5KiB", 1536),
        (Size(), "7B", 7),
        (Ip(), "2001:DB8:0::7", "2001:db8::7"),
        (Mac(), "52:54:00:AA:BB:CC", "52:54:00:aa:bb:cc"),
        (Namespace(), "/proc/1/ns/net", "/proc/1/ns/net"),
        (FilePath(or_dash=True), "-", "-"),
        (Interface(), "eth0.100-x_y", "eth0.100-x_y"),
    ],
)
def test_values(unit: Any, text: str, made: object) -> None:
    assert unit.parse(text) == made


@pytest.mark.parametrize(
    ("unit", "value"),
    [
        *(
            (Duration(), text)
            for text in ("", "ms", "1", "-1s", "1e3s", "1.s", ".5s", "1d", "1s ", "٣s", "1.0000000001s")
        ),
        (Duration(1), "0.5ns"),
        *((Size(), text) for text in ("", "1KB", "1k", "1Mib", "0.5B", "0B")),
        *((Name(), text) for text in ("", "-a", "a b", "a/b", "a,b", "é", "a" * 64, "a\n")),
        *((Interface(), text) for text in ("", ".", "..", "a b", "a/b", "a:b", "a%d", "é", "a\n", "x" * 16)),
        *((Ip(), text) for text in ("", "1.2.3", "1.2.3.4/8", "fe80::1%eth0", "0.0.0.0", "::", "224.0.0.1")),
        *((Mac(), text) for text in ("", "52:54:00:aa:bb", "01:00:5e:00:00:01", "00:00:00:00:00:00")),
        *((Place(), text) for text in ("", "a", "connect:a:1", "a:99999", "a b:1", "unix:", "unix:x", "[::1]")),
        *((EndpointText(), text) for text in ("", "a:1", "tcp:1", "tcp::1", "tcp:connect:a:1", "unix:/a/", "sctp:a:1")),
        *((Namespace(), text) for text in ("", ".", "..", "a/b")),
        *((FilePath(), text) for text in ("", "-", "a", "/", "/a/", "/a\0")),
        *((Account(), text) for text in ("", "a b", "-x", "Root:", "-1")),
        *((Count(1, 2), number) for number in (0, 3, 1.0, True, "1", None)),
        *((unit, odd) for unit in (Duration(), Size(), Name(), Ip(), Place()) for odd in (1, True, None, [], {})),
    ],
)
def test_refused_values(unit: Any, value: object) -> None:
    with pytest.raises(PydanticCustomError):
        unit.parse(value)


@given(st.integers(0, 1 << 60))
def test_quantities_are_written_as_they_are_read(value: int) -> None:
    text, size = format_duration(value), format_size(value)
    if len(text) < 15:  # a number of the file has 12 digits at most
        assert Duration(0, 1 << 61).parse(text) == value
    if len(size) < 13:
        assert Size(0, 1 << 61).parse(size) == value


def test_the_pairs_fields_are_strict_all_the_way_down() -> None:
    from coloproxy.pair.config import keys_of, table_of

    def walk(model: Any) -> None:
        assert model.model_config["extra"] == "forbid"
        assert model.model_config["strict"]
        for info in keys_of(model).values():
            inner = table_of(info)
            if inner is not None:
                walk(inner)

    walk(Pair)
