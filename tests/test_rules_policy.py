# SPDX-License-Identifier: Apache-2.0
"""The operator's rules, row by row: what is compared, what passes, what waits for a commit; and their file."""

from __future__ import annotations

import ipaddress
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path as FilePath

import pytest
import wire
from chaos import make_chaos, make_garbage
from conversation import make_conversation
from model.core import Core
from model.oracle import Oracle
from model.packet import parse
from model.rules import policy_of
from model.run import Commit, Run, Stop
from model.table import (
    MILLISECOND,
    NUMBERS,
    OPEN,
    TIMEOUT_MS,
    WINDOW_MS,
    Row,
    Table,
    abort,
    alone,
    commit,
    p,
    p_raw,
    p_syn,
    resume,
    s,
    s_raw,
    s_syn,
    stop,
    wait,
)
from model.verdict import Config
from strategies import seeded, seeds
from wire import Path
from world import World

from coloproxy import Comparator, Side
from coloproxy.engine import Engine
from coloproxy.errors import MisuseError, RulesError
from coloproxy.events import CheckpointWanted, FrameClass, Reason
from coloproxy.rules import (
    Match,
    Policy,
    PolicyRule,
    Rules,
    load_rules,
    parse_rules,
    rules_document,
    rules_from_document,
)

CONFIG = Config(compare_timeout=TIMEOUT_MS * MILLISECOND, reorder_window=WINDOW_MS * MILLISECOND, reorder_frames=4)

MDNS4 = Path(sport=5353, dport=5353, client=bytes([224, 0, 0, 251]))
MDNS6 = replace(Path.v6(), sport=5353, dport=5353, client=bytes.fromhex("ff02" + "00" * 13 + "fb"))

TRAFFIC: dict[str, tuple[str, Callable[[bytes], bytes]]] = {
    "QUIC": ("protocol = 'udp'\nvm_port = 443", lambda body: wire.udp(Path(sport=443), body)),
    "DNS": ("class = 'udp'\nvm_port = 53", lambda body: wire.udp(Path(sport=53), body)),
    "DNS over IPv6": ("vm_port = '50-60'", lambda body: wire.udp(replace(Path.v6(), sport=53), body)),
    "SCTP": ("protocol = 'sctp'", lambda body: wire.ip(Path(), 132, bytes(12) + body)),
    "ESP": ("protocol = 'esp'", lambda body: wire.ip(Path(), 50, bytes(8) + body)),
    "ESP over IPv6": ("protocol = 50", lambda body: wire.ip(Path.v6(), 50, bytes(8) + body)),
    "GRE": ("class = 'ip-other'\nprotocol = 47", lambda body: wire.ip(Path(), 47, bytes(4) + body)),
    "an unknown protocol": ("protocol = 253", lambda body: wire.ip(Path(), 253, body)),
    "an unknown ethertype": ("class = 'other'", lambda body: wire.ethernet(0x88B5, body)),
    "multicast": ("client = '224.0.0.0/4'", lambda body: wire.udp(MDNS4, body)),
    "multicast over IPv6": ("client = 'ff00::/8'", lambda body: wire.udp(MDNS6, body)),
    "a VLAN": ("vlan = 12", lambda body: wire.udp(Path(vlans=(7, 12)), body)),
    "a client": ("client = '10.0.0.2'", lambda body: wire.udp(Path(), body)),
    "a VM's prefix": ("vm = '10.0.0.0/24'\nclient_port = 40000", lambda body: wire.udp(Path(), body)),
}


def ruled(text: str) -> Config:
    return replace(CONFIG, rules=parse_rules(text))


def play(config: Config, rows: list[Row]) -> None:
    Table(Core, NUMBERS[0], config).play(rows)


OTHER_RULE = "[[policy]]\naction = 'pass'\nprotocol = 'udp'\nvm_port = 9\n"


@pytest.mark.parametrize("what", TRAFFIC)
@pytest.mark.parametrize(
    "text", ["", OTHER_RULE, "[[policy]]\naction = 'compare'\n{}"], ids=["none", "other", "compare"]
)
def test_compared_by_default_and_by_rule(what: str, text: str) -> None:
    match, frame = TRAFFIC[what]
    rows: list[Row] = [
        (p_raw(frame(b"same")), ""),
        (s_raw(frame(b"same")), "p1"),
        (p_raw(frame(b"nonce 1")), ""),
        (s_raw(frame(b"nonce 2")), ""),
    ]
    run = Table(Core, NUMBERS[0], ruled(text.format(match))).play(rows)
    assert run.held == [3]
    run.step(Stop(10**9))
    run.step(Commit(10**9 + 1, 10**9 + 1))
    assert not run.held


@pytest.mark.parametrize("what", TRAFFIC)
def test_pass(what: str) -> None:
    match, frame = TRAFFIC[what]
    play(ruled(f"[[policy]]\naction = 'pass'\n{match}"), [
        (p_raw(frame(b"nonce 1")), "p1"),
        (s_raw(frame(b"nonce 2")), ""),
        (stop(), ""),
        (p_raw(frame(b"while the VMs stand still")), "p2"),
        (s_raw(frame(b"too")), ""),
        (commit(), ""),
        (wait(2 * TIMEOUT_MS), ""),
    ])  # fmt: skip


@pytest.mark.parametrize("what", TRAFFIC)
def test_drop_secondary(what: str) -> None:
    match, frame = TRAFFIC[what]
    play(ruled(f"[[policy]]\naction = 'drop-secondary'\n{match}"), [
        (s_raw(frame(b"same")), ""),
        (p_raw(frame(b"same")), "want:policy"),
        (s_raw(frame(b"same")), ""),
        (p_raw(frame(b"more")), ""),
        (wait(2 * TIMEOUT_MS), ""),
        (stop(), ""),
        (p_raw(frame(b"late")), ""),
        (resume(), ""),
        (p_raw(frame(b"of the new epoch")), ""),
        (commit(), "p1 p2 p3 want:policy"),
        (alone(), "p4"),
        (p_raw(frame(b"alone")), "p5"),
    ])  # fmt: skip


DROP_TCP = "[[policy]]\naction = 'drop-secondary'\nclass = 'tcp'\nvm_port = 80"
PASS_TCP = "[[policy]]\naction = 'pass'\nclass = 'tcp'\nvm_port = 80"

CASES: dict[str, tuple[str, list[Row]]] = {
    "TCP that passes: its ACKs too": (
        PASS_TCP,
        [(p_syn(), "p1"), (p(0, "abc", ack=9), "p2"), (s(0, "xyz"), ""), (p(3, ack=12), "p3")],
    ),
    "TCP that waits: its SYN and ACKs too, and no ACK of our own": (
        DROP_TCP,
        [
            (p_syn(), "want:policy"),
            (s_syn(), ""),
            (p(0, ack=9), ""),
            (p(0, "abc", ack=9), ""),
            (s(0, "abc", ack=9), ""),
            (commit(), "p1 p2 p3"),
            (p(0, "abc", ack=9), "want:policy"),
            (commit(), "p4"),
        ],
    ),
    "an aborted checkpoint covers nothing, and is still wanted": (
        DROP_TCP,
        [(p(0, "a"), "want:policy"), (stop(), ""), (p(1, "b"), ""), (abort(), ""), (commit(), "p1 p2")],
    ),
    "without a secondary nothing waits": (DROP_TCP, [(alone(), ""), (p(0, "a"), "p1"), (s(0, "a"), "")]),
    "other flows go on": (
        DROP_TCP,
        [
            (p(0, "a"), "want:policy"),
            (p_raw(wire.udp(Path(), b"x")), ""),
            (s_raw(wire.udp(Path(), b"x")), "p2"),
            (commit(), "p1"),
        ],
    ),
    "the first rule that fits decides": (
        "[[policy]]\naction = 'pass'\nvm_port = 53\n[[policy]]\naction = 'drop-secondary'\nclass = 'udp'",
        [(p_raw(wire.udp(Path(sport=53), b"a")), "p1"), (p_raw(wire.udp(Path(sport=54), b"a")), "want:policy")],
    ),
    "a rule is stronger than the class's default": (
        "[[policy]]\naction = 'compare'\nclass = 'arp'",
        [(p_raw(wire.arp()), ""), (s_raw(wire.arp()), "p1"), (p_raw(wire.lldp()), "p2")],
    ),
    "an exception in a prefix": (
        "[[policy]]\naction = 'compare'\nclient = '10.0.0.2'\n[[policy]]\naction = 'pass'\nclient = '10.0.0.0/8'",
        [(p_raw(wire.udp(Path(client=bytes([10, 0, 0, 3])), b"a")), "p1"), (p_raw(wire.udp(Path(), b"a")), "")],
    ),
    "a rule for IPv4 says nothing of IPv6": (
        "[[policy]]\naction = 'pass'\nclient = '0.0.0.0/0'",
        [(p_raw(wire.udp(Path.v6(), b"a")), ""), (p_raw(wire.udp(Path(), b"a")), "p2")],
    ),
    "an ICMP identifier is no port": (
        "[[policy]]\naction = 'pass'\nvm_port = 80",
        [(p_raw(wire.echo_reply(Path(), 80, 1)), ""), (p_raw(wire.udp(Path(), b"a")), "p2")],
    ),
    "a rule without conditions is for all": (
        "[[policy]]\naction = 'pass'",
        [(p(0, "a"), "p1"), (p_raw(b"\x01\x02"), "p2"), (p_raw(wire.ethernet(0x88B5, b"x")), "p3")],
    ),
    "TCP that is compared, beside a rule": (
        "[[policy]]\naction = 'pass'\nvm_port = 81",
        [*OPEN, (p(0, "abc"), ""), (s(0, "abc"), "p2")],
    ),
}


@pytest.mark.parametrize("numbers", NUMBERS, ids=str)
@pytest.mark.parametrize("case", CASES)
def test_rule(case: str, numbers: object) -> None:
    text, rows = CASES[case]
    Table(Core, numbers, ruled(text)).play(rows)  # type: ignore[arg-type]


def test_the_event_names_the_flow() -> None:
    comparator = Comparator(rules=parse_rules("[[policy]]\naction = 'drop-secondary'\nprotocol = 'esp'"))
    comparator.commit(0, 0)
    comparator.feed(Side.PRIMARY, [wire.ip(Path(), 50, bytes(16))], 1)
    comparator.feed(Side.SECONDARY, [wire.ip(Path(), 50, bytes(16))], 2)
    (event,) = comparator.events()
    assert isinstance(event, CheckpointWanted)
    assert (str(event.cause), str(event.flow)) == ("policy", "ip-50 10.0.0.1 > 10.0.0.2")
    assert comparator.counters().discarded[Reason.IGNORED] == 1


def test_what_waits_for_a_commit_or_passes_takes_no_place_in_the_flow_table() -> None:
    for action in (Policy.PASS, Policy.DROP_SECONDARY):
        comparator = Comparator(rules=Rules((PolicyRule("all", action),)), max_flows=1)
        comparator.commit(0, 0)
        for stopped in (False, True):
            if stopped:
                comparator.stop(5)
            comparator.feed(Side.PRIMARY, [wire.tcp(Path(dport=port), 9, 9, wire.ACK, b"x") for port in range(9)], 6)
            comparator.commit(7, 7)
            assert len(comparator.actions()) == 9
            assert comparator.counters().flows == 0


FRAGMENTS = [wire.ip(Path(), 50, bytes(range(16)), fragment=0x2000), wire.ip(Path(), 50, bytes(range(16)), fragment=2)]


def test_fragments_by_each_action() -> None:
    """Their datagram decides, once it is whole; then they leave, or wait, as it does."""
    for action, first, second in (
        ("pass", "p1 p2", ""),
        ("drop-secondary", "want:policy", ""),
        ("compare", "", "p1 p2"),
    ):
        rows: list[Row] = [
            (p_raw(FRAGMENTS[0]), ""),
            (p_raw(FRAGMENTS[1]), first),
            ([s_raw(frame) for frame in FRAGMENTS], second),
            (commit(), "p1 p2" if action == "drop-secondary" else ""),
        ]
        play(ruled(f"[[policy]]\naction = '{action}'\nprotocol = 'esp'"), rows)


# ------------------------------------------------------------------ any rules, any frames

PORTS = ((0, 65535), (80, 80), (1000, 1001), (40001, 65535))
PREFIXES = ("10.0.0.0/8", "10.0.0.2/31", "10.0.0.3", "fd00::/16", "fd00::2", "0.0.0.0/0")


def random_rules(seed: int) -> Rules:
    dice = seeded(seed)

    def sometimes(make: Callable[[], object]) -> object:
        return make() if dice.chance(3) else None

    def rule() -> PolicyRule:
        match = Match(
            sometimes(lambda: frozenset(dice.choose(list(FrameClass)[:5]) for _ in range(2))),  # type: ignore[arg-type]
            sometimes(lambda: dice.choose((6, 6, 17, 1, 58))),  # type: ignore[arg-type]
            sometimes(lambda: dice.choose(PORTS)),  # type: ignore[arg-type]
            sometimes(lambda: dice.choose(PORTS)),  # type: ignore[arg-type]
            sometimes(lambda: ipaddress.ip_network(dice.choose(PREFIXES))),  # type: ignore[arg-type]
            sometimes(lambda: ipaddress.ip_network(dice.choose(PREFIXES))),  # type: ignore[arg-type]
            sometimes(lambda: dice.pick(0, 9)) if dice.chance(3) else None,  # type: ignore[arg-type]
        )
        return PolicyRule("random", dice.choose(tuple(Policy)), match)

    return Rules(tuple(rule() for _ in range(dice.pick(1, 6))))


def test_any_conversation_under_any_rules() -> None:
    for seed in seeds(150):
        conversation = make_conversation(seeded(seed))
        config = Config(keep_gap=conversation.keep_gap, rules=random_rules(seed))
        run = Run(Core(config), Oracle(config))
        try:
            run.play(conversation.schedule())
            run.step(Stop(conversation.now + 1))
            run.step(Commit(conversation.now + 2, conversation.now + 2))
            assert not run.held
        except AssertionError as error:
            error.add_note(f"seed {seed}: {config.rules}")
            raise


def test_any_chaos_under_any_rules() -> None:
    for seed in seeds(150):
        config = Config(rules=random_rules(seed))
        try:
            Run(Core(config), Oracle(config, live=False)).play(make_chaos(seeded(seed)))
            Run(Core(config), Oracle(config, strict=False)).play(make_garbage(seeded(seed)))
        except AssertionError as error:
            error.add_note(f"seed {seed}: {config.rules}")
            raise


def test_a_world_whose_connections_wait_for_commits() -> None:
    """R1 as a property, with output that only commits cover: the survivor contradicts nothing."""
    waits = PolicyRule("one", Policy.DROP_SECONDARY, Match(client_port=(1000, 1000)))
    for seed in seeds(60):
        config = Config(rules=Rules((waits,)))
        world = World(Run(Core(config), Oracle(config)), seeded(seed), False)
        for _ in range(200):
            world.act()
        world.finish()


def test_many_rules_and_many_flows() -> None:
    """More flows than the cache of answers has places, each asked for twice."""
    rules = Rules(tuple(PolicyRule(str(n), Policy(n % 3), Match(vm_port=(n * 7, n * 7 + 2))) for n in range(256)))
    comparator = Comparator(rules=rules, max_flows=4000)
    comparator.commit(0, 0)
    frames = [wire.udp(Path(sport=port), b"x") for port in range(1300)] * 2
    comparator.feed(Side.PRIMARY, frames, 1)
    passed = {action.frame for action in comparator.actions()}  # type: ignore[union-attr]
    for number, frame in enumerate(frames):
        assert (number in passed) == (policy_of(rules, (), parse(frame).key) == Policy.PASS)


# ------------------------------------------------------------------ what can't be used

BAD_TEXTS = {
    "not TOML": ("[[policy]", "rules: "),
    "an unknown kind": ("[[polcy]]\naction = 'pass'", "rules: 'polcy': unknown"),
    "not a table": ("policy = 3", "rules: policy: write each rule"),
    "a single table": ("[policy]\naction = 'pass'", "rules: policy: write each rule"),
    "no action": ("\n[[policy]]\nvm_port = 4", "rules:2: [[policy]] 1: action is missing: one of compare, pass, drop"),
    "an unknown action": ("[[policy]]\nname = 'x'\naction = 'drop'", "rules:3: [[policy]] 1 \"x\": action = \"drop\""),
    "an unknown key": (
        "[[policy]]\naction = 'pass'\n\n[[policy]]\naction = 'pass'\nport = 5",
        "rules:6: [[policy]] 2: port: unknown key",
    ),
    "a port too high": ("[[policy]]\naction = 'pass'\nvm_port = 65536", "rules:3: [[policy]] 1: vm_port = 65536: not "),
    "a port that is true": ("[[policy]]\naction = 'pass'\nvm_port = true", "rules:3: "),
    "an empty range": ("[[policy]]\naction = 'pass'\nclient_port = '9-8'", "rules:3: "),
    "a prefix with host bits": ("[[policy]]\naction = 'pass'\nclient = '10.0.0.1/8'", "rules:3: [[policy]] 1: client "),
    "a prefix that is none": ("[[policy]]\naction = 'pass'\nvm = 'example.org'", "rules:3: "),
    "an unknown class": ("[[policy]]\naction = 'pass'\nclass = ['tcp', 'quic']", "rules:3: [[policy]] 1: class = "),
    "no class": ("[[policy]]\naction = 'pass'\nclass = []", "rules:3: "),
    "an unknown protocol": ("[[policy]]\naction = 'pass'\nprotocol = 'quic'", "rules:3: "),
    "a protocol too high": ("[[policy]]\naction = 'pass'\nprotocol = 256", "rules:3: "),
    "a VLAN too high": ("[[policy]]\naction = 'pass'\nvlan = 4096", "rules:3: "),
    "a name that is none": ("[[policy]]\naction = 'pass'\nname = ''", "rules:3: "),
    "too many": ("[[policy]]\naction = 'pass'\n" * 257, "rules: 257 [[policy]] rules, 256 at most"),
    "written inline": ("policy = [{action = 'drop'}]", "rules: [[policy]] 1: action = "),
}  # fmt: skip


@pytest.mark.parametrize("what", BAD_TEXTS)
def test_a_mistake_is_told_with_its_place(what: str) -> None:
    text, error = BAD_TEXTS[what]
    with pytest.raises(RulesError) as caught:
        parse_rules(text)
    assert str(caught.value).startswith(error)


def test_rules_as_json_are_the_same_rules() -> None:
    text = (FilePath(__file__).resolve().parent.parent / "docs" / "rules.md").read_text(encoding="utf-8")
    for rules in (parse_rules(text.split("```toml\n")[1].split("```")[0]), Rules(), *map(random_rules, range(50))):
        assert rules_from_document(json.loads(json.dumps(rules_document(rules)))) == rules


def test_a_file_that_cannot_be_read(tmp_path: FilePath) -> None:
    with pytest.raises(RulesError, match=r"none\.toml: .*No such file"):
        load_rules(tmp_path / "none.toml")
    (tmp_path / "latin.toml").write_bytes(b"name = '\xff'")
    with pytest.raises(RulesError, match=r"latin\.toml"):
        load_rules(tmp_path / "latin.toml")


BAD_RULES = {
    "a range upside down": Match(vm_port=(9, 8)),
    "a VLAN too high": Match(vlan=5000),
    "no class": Match(classes=frozenset()),
}


@pytest.mark.parametrize("what", BAD_RULES)
def test_the_core_refuses_what_makes_no_sense(what: str) -> None:
    rules = Rules((PolicyRule("bad", Policy.PASS, BAD_RULES[what]),))
    with pytest.raises(MisuseError):
        Comparator(rules=rules)
    with pytest.raises(MisuseError):
        Engine(rules=rules)


def test_a_mistake_ends_the_command_as_wrong_usage(tmp_path: FilePath) -> None:
    (tmp_path / "rules.toml").write_text("[[policy]]\naction = 'drop'\n")
    addresses = [f"--{port}=unix:{tmp_path}/{port}" for port in ("primary-in", "secondary-in", "outdev")]
    command = [sys.executable, "-P", "-m", "coloproxy", "compare", *addresses, f"--rules={tmp_path}/rules.toml"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert 'rules.toml:2: [[policy]] 1: action = "drop": not one of compare, pass, drop-secondary' in done.stderr


def test_too_many_rules_for_the_core() -> None:
    with pytest.raises(MisuseError):
        Comparator(rules=Rules((PolicyRule("x", Policy.PASS),) * 257))


def test_the_documented_example_is_a_rules_file() -> None:
    text = (FilePath(__file__).resolve().parent.parent / "docs" / "rules.md").read_text(encoding="utf-8")
    example = text.split("```toml\n")[1].split("```")[0]
    rules = parse_rules(example, "docs/rules.md")
    assert {rule.action for rule in rules.policies} == set(Policy)
    Comparator(rules=rules)
