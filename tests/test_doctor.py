# SPDX-License-Identifier: Apache-2.0
"""`coloproxy doctor`: each check finds what is right and what is not, on this machine, its real QEMU and real files."""

from __future__ import annotations

import datetime
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from pair_files import NODE, PAIR

from coloproxy.doctor import CHECKS, Level, Subject, examine
from coloproxy.doctor.check import Check, Finding, Port, output_of
from coloproxy.doctor.clock import judge_clock, skew_ms
from coloproxy.doctor.qemu import missing_features, probe
from coloproxy.doctor.software import judge_versions
from coloproxy.doctor.subject import of_pair
from coloproxy.pair import load
from coloproxy.pair.config import load_both

NOWHERE = "/nonexistent/program"
TOP = Path(__file__).resolve().parent.parent
needs_qemu = pytest.mark.skipif(shutil.which("qemu-system-x86_64") is None, reason="no QEMU")
needs_images = pytest.mark.skipif(shutil.which("qemu-img") is None, reason="no qemu-img")
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="not root")
needs_ip = pytest.mark.skipif(shutil.which("ip") is None, reason="no ip")


def look(name: str, subject: Subject) -> list[Finding]:
    return [finding for _, finding in examine(subject, [name])]


def one(name: str, subject: Subject) -> Finding:
    (finding,) = look(name, subject)
    return finding


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """In place of /: nothing is there yet."""
    root = tmp_path / "root"
    root.mkdir()
    return root


def put(root: Path, name: str, text: str = "") -> Path:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


# ------------------------------------------------------------------ the whole


def test_this_machine() -> None:
    findings = list(examine(Subject()))
    names = {check.name for check, _ in findings}
    assert {"qemu", "kvm", "tun", "capabilities", "clock", "python", "systemd"} <= names
    for check, finding in findings:
        assert finding.text and check.looks_at
        assert bool(finding.do) == (finding.level > Level.OK), (check.name, finding)


def test_a_check_that_breaks_leaves_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(subject: Subject) -> Iterator[Finding]:
        yield Finding(Level.OK, "before")
        raise OSError("no luck")

    monkeypatch.setitem(CHECKS, "broken", Check("broken", "nothing", run))
    found = [(check.name, finding.level, finding.text) for check, finding in examine(Subject(), ["broken", "python"])]
    assert found[:2] == [("broken", Level.OK, "before"), ("broken", Level.WARN, "can't be looked at: no luck")]
    assert found[2][0] == "python"


def doctor(*arguments: str) -> tuple[int, str, str]:
    done = subprocess.run(
        [sys.executable, "-P", "-m", "coloproxy", "doctor", *arguments], capture_output=True, text=True, check=False
    )
    return done.returncode, done.stdout, done.stderr


def test_the_command(tmp_path: Path) -> None:
    code, out, _ = doctor("--only", "python", "--json")
    document = json.loads(out)
    assert (code, document["result"], [each["check"] for each in document["findings"]]) == (0, 0, ["python"])
    code, out, _ = doctor("--only", "qemu", "--only", "python", "--qemu", NOWHERE)
    assert code == 2 and out.startswith("fail") and "install QEMU" in out and "python" in out
    assert doctor("--only", "nothing")[0] == 2
    code, _, err = doctor("-c", str(tmp_path / "none.toml"))
    assert code == 2 and "--role go together" in err


def test_every_check_is_documented() -> None:
    text = (TOP / "docs" / "doctor.md").read_text(encoding="utf-8")
    assert [name for name in CHECKS if f"| `{name}` |" not in text] == []


# ----------------------------------------------------------------------- QEMU


@needs_qemu
def test_qemu_as_it_is() -> None:
    assert one("qemu", Subject()).text.startswith("QEMU ")
    assert one("qemu-features", Subject()).level is Level.OK


def test_no_qemu() -> None:
    subject = Subject(qemu=NOWHERE, qemu_img=NOWHERE)
    assert one("qemu", subject).level is Level.FAIL
    assert look("qemu-features", subject) == []  # said already
    assert one("qemu-img", subject).level is Level.FAIL


@pytest.mark.parametrize(
    ("version", "level"), [((6, 2, 0), Level.FAIL), ((7, 2, 5), Level.OK), ((9, 0, 0), Level.WARN)]
)
def test_versions_of_qemu(version: tuple[int, int, int], level: Level, tmp_path: Path) -> None:
    """A program that answers as QEMU does."""
    numbers = dict(zip(("major", "minor", "micro"), version, strict=True))
    lines = [{"QMP": {}}, {"return": {}}, {"return": {"qemu": numbers}}, {"return": []}, {"return": {}}]
    script = put(
        tmp_path, "qemu", "#!/bin/sh\ncat >/dev/null\ncat <<'E'\n" + "\n".join(map(json.dumps, lines)) + "\nE\n"
    )
    script.chmod(0o755)
    subject = Subject(qemu=str(script))
    assert one("qemu", subject).level is level
    lacking = one("qemu-features", subject)
    assert lacking.level is Level.FAIL and "block driver replication" in lacking.text


@pytest.mark.parametrize("text", ["exit 1", "echo nonsense", "echo '{}'"])
def test_what_is_no_qemu(text: str, tmp_path: Path) -> None:
    script = put(tmp_path, "qemu", f"#!/bin/sh\n{text}\n")
    script.chmod(0o755)
    assert one("qemu", Subject(qemu=str(script))).text.startswith("can't be looked at")


def test_a_program_that_drops_what_its_output_has_no_room_for() -> None:
    """As QEMU does that is told to quit: its schema is larger than a pipe."""
    program = """if True:
        import os
        os.set_blocking(1, False)
        try:
            written = os.write(1, bytes(1 << 20))
        except BlockingIOError:
            pass
    """
    text = output_of([sys.executable, "-c", program])
    assert text is not None and len(text) == 1 << 20


@needs_qemu
def test_a_feature_that_was_left_out_is_missed() -> None:
    """Of the real schema, one thing at a time is taken away."""
    found = probe(Subject())
    assert found is not None
    schema = found["schema"]
    assert missing_features(schema) == []
    for name in ("yank", "x-colo-lost-heartbeat"):
        assert missing_features([each for each in schema if each.get("name") != name]) == [name]
    for value, words in (
        ("replication", "block driver replication"),
        ("quorum", "block driver quorum"),
        ("x-colo", "migration capability x-colo"),
        ("tls-creds-psk", "TLS with pre-shared keys"),
        ("stream", "-netdev stream"),
    ):
        less = [
            each | {"values": [v for v in each["values"] if v != value]} if each["meta-type"] == "enum" else each
            for each in schema
        ]
        assert missing_features(less) == [words]


def test_kvm_is_absent(tree: Path) -> None:
    assert one("kvm", Subject(root=tree)).text.startswith("there is no /dev/kvm")
    put(tree, "dev/kvm")
    put(tree, "proc/cpuinfo", "flags\t\t: fpu sse2\n")
    assert one("kvm", Subject(root=tree, qemu=NOWHERE)).text.startswith("the processor offers neither VT-x nor AMD-V")


def test_kvm_is_tried_with_the_qemu_that_is_meant(tree: Path) -> None:
    put(tree, "dev/kvm")
    put(tree, "proc/cpuinfo", "flags\t\t: fpu vmx\n")
    assert one("kvm", Subject(root=tree, qemu=NOWHERE)).text.startswith(f"{NOWHERE} can't be started")


def test_ram(tree: Path) -> None:
    subject = Subject(root=tree)  # without KVM
    assert look("ram", subject) == []
    bad = one("ram", replace(subject, ram_bytes=192 << 20))
    assert bad.level is Level.FAIL and bad.do == "take -m 196616k"
    assert one("ram", replace(subject, ram_bytes=196616 << 10)).level is Level.OK


# --------------------------------------------------------------------- kernel


def test_no_tun(tree: Path) -> None:
    assert one("tun", Subject(root=tree)).do == "modprobe tun"
    put(tree, "dev/net/tun")
    assert one("tun", Subject(root=tree)).text.endswith("is no device")


@needs_root
@pytest.mark.parametrize(("mode", "level"), [(0o666, Level.OK), (0o600, Level.WARN)])
def test_tun(mode: int, level: Level, tree: Path) -> None:
    if not Path("/dev/net/tun").exists():
        pytest.skip("no /dev/net/tun")
    (tree / "dev/net").mkdir(parents=True)
    device = tree / "dev/net/tun"
    os.mknod(device, 0o20000 | mode, os.makedev(10, 200))
    device.chmod(mode)
    found = one("tun", Subject(root=tree))
    assert (found.level, f"{mode:04o}" in found.text) == (level, True)


@pytest.mark.parametrize(
    ("bits", "raw", "level"),
    [("3000", True, Level.OK), ("1000", False, Level.WARN), ("1000", True, Level.FAIL), ("0", False, Level.FAIL)],
)
def test_capabilities(bits: str, raw: bool, level: Level, tree: Path) -> None:
    """NET_ADMIN is bit 12, NET_RAW bit 13."""
    put(tree, "proc/self/status", f"Name:\tx\nCapPrm:\tffff\nCapEff:\t{bits}\n")
    assert one("capabilities", Subject(root=tree, needs_raw=raw)).level is level


@needs_root
def test_what_only_root_may() -> None:
    """The same as nobody, in a process of its own."""
    script = (
        "import os, encodings.idna\n"
        "from coloproxy.doctor import Subject, examine\n"
        "from pathlib import Path\n"
        "os.setgid(65534); os.setuid(65534)\n"
        "s = Subject(root=Path('/nonexistent'), needs_raw=True, peer='127.0.0.1')\n"
        "print([(c.name, f.level.name) for c, f in examine(s, ['packet-sockets', 'bridge', 'clock-skew'])])"
    )
    done = subprocess.run([sys.executable, "-P", "-c", script], capture_output=True, text=True, check=False, cwd="/")
    assert "('packet-sockets', 'FAIL')" in done.stdout, done.stderr
    assert "('bridge', 'WARN')" in done.stdout and "('clock-skew', 'WARN')" in done.stdout
    assert one("packet-sockets", Subject()).level is Level.OK


def test_memory(tree: Path) -> None:
    put(tree, "proc/meminfo", "MemTotal: 4194304 kB\nMemFree: 1 kB\nMemAvailable: 2097152 kB\n")
    assert one("memory", Subject(root=tree)).level is Level.OK
    assert one("memory", Subject(root=tree, ram_bytes=1 << 30)).level is Level.WARN


def test_namespaces(tree: Path) -> None:
    assert one("namespaces", Subject()).level is Level.OK
    assert one("namespaces", Subject(root=tree)).level is Level.WARN


# --------------------------------------------------------------------- clocks


@pytest.mark.parametrize(("name", "level"), [("tsc", Level.OK), ("kvm-clock", Level.OK), ("hpet", Level.WARN)])
def test_clock_source(name: str, level: Level, tree: Path) -> None:
    put(tree, "sys/devices/system/clocksource/clocksource0/current_clocksource", f"{name}\n")
    assert one("clock-source", Subject(root=tree)).level is level


@pytest.mark.parametrize(
    ("year", "unsynchronised", "level"),
    [(2031, False, Level.OK), (2031, True, Level.WARN), (1970, False, Level.FAIL)],
)
def test_clock(year: int, unsynchronised: bool, level: Level) -> None:
    (found,) = judge_clock(datetime.datetime(year, 1, 2, tzinfo=datetime.UTC), unsynchronised, 1500)
    assert found.level is level
    assert one("clock", Subject()).level in (Level.OK, Level.WARN)


@needs_root
def test_skew_of_a_host_against_itself() -> None:
    assert skew_ms("127.0.0.1") in range(-20, 21)
    assert one("clock-skew", Subject(peer="127.0.0.1")).level is Level.OK
    assert look("clock-skew", Subject()) == []
    assert one("clock-skew", Subject(peer="::1")).level is Level.WARN  # only IPv4 has it


# -------------------------------------------------------------------- network


def test_ports_of_ours() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        udp.bind(("127.0.0.1", 0))
        for protocol, number in (("tcp", taken.getsockname()[1]), ("udp", udp.getsockname()[1])):
            busy = one("ports-free", Subject(ports=(Port("link", protocol, "127.0.0.1", number, ours=True),)))
            assert (busy.level, busy.do) == (Level.FAIL, f"find who: ss -lnp 'sport = :{number}'")
    for host in ("127.0.0.1", "", "::1"):
        assert one("ports-free", Subject(ports=(Port("link", "tcp", host, 0, ours=True),))).level is Level.OK
    foreign = one("ports-free", Subject(ports=(Port("link", "tcp", "192.0.2.1", 0, ours=True),)))
    assert foreign.level is Level.FAIL and "no such address" in foreign.text


def test_ports_of_the_peers() -> None:
    with socket.create_server(("127.0.0.1", 0)) as there:
        number = there.getsockname()[1]
        port = Port("NBD", "tcp", "127.0.0.1", number, ours=False)
        assert one("ports-reachable", Subject(ports=(port,))).text.endswith("answers")
    silent = one("ports-reachable", Subject(ports=(port,)))
    assert silent.level is Level.OK and "nobody listens" in silent.text
    bad = one("ports-reachable", Subject(ports=(Port("NBD", "tcp", "no.such.host.invalid", 1, ours=False),)))
    assert bad.level is Level.FAIL


@pytest.fixture
def link(tmp_path: Path) -> Iterator[list[str]]:
    """A network namespace with one end of a cable: 10.77.0.1/24, MTU 1400."""
    name = f"doctor{os.getpid()}"
    enter = ["ip", "netns", "exec", name]
    subprocess.run(["ip", "netns", "add", name], check=True)
    try:
        for command in (
            "ip link add far0 type veth peer name near0",
            "ip link set near0 up mtu 1400",
            "ip link set far0 up",
            "ip address add 10.77.0.1/24 dev near0",
        ):
            subprocess.run([*enter, *command.split()], check=True)
        yield enter
    finally:
        subprocess.run(["ip", "netns", "delete", name], check=True)


@needs_root
@needs_ip
def test_route_and_mtu(link: list[str]) -> None:
    def found(name: str) -> str:
        done = subprocess.run(
            [*link, sys.executable, "-P", "-m", "coloproxy", "doctor", "--peer", "10.77.0.2", "--only", name, "--json"],
            capture_output=True,
            text=True,
            check=False,
        )
        (finding,) = json.loads(done.stdout)["findings"]
        return f"{finding['result']}: {finding['text']} {finding['do']}"

    assert found("link-mtu").startswith("warn: near0 has MTU 1400")
    subprocess.run([*link, "ip", "link", "set", "near0", "mtu", "1500"], check=True)
    assert found("link-mtu") == "ok: near0 has MTU 1500 "
    slow = found("quickack")
    assert slow.startswith("warn") and "ip route replace 10.77.0.0/24 dev near0 quickack 1" in slow
    subprocess.run([*link, *["ip", "route", "replace", "10.77.0.0/24", "dev", "near0", "quickack", "1"]], check=True)
    assert found("quickack") == "ok: the route to 10.77.0.2 has quickack 1 "


def test_without_ip() -> None:
    for name in ("link-mtu", "quickack"):
        assert look(name, Subject()) == []
        assert one(name, Subject(peer="127.0.0.1", ip=NOWHERE)).do == "install iproute2"


# -------------------------------------------------------------------- storage


def create(path: Path, *arguments: str) -> Path:
    subprocess.run(["qemu-img", "create", "-q", *arguments[:-1], str(path), arguments[-1]], check=True)
    return path


@needs_images
def test_images(tmp_path: Path) -> None:
    good = create(tmp_path / "good.qcow2", "-f", "qcow2", "64M")
    assert one("images", Subject(images=(good,))).text == f"{good}: qcow2, 67108864 bytes"
    assert one("image-sizes", Subject(images=(good,))).text == "good.qcow2 67108864"
    based = create(tmp_path / "based.qcow2", "-f", "qcow2", "-F", "qcow2", "-b", str(good), "64M")
    assert one("images", Subject(images=(based,))).level is Level.WARN
    assert one("images", Subject(images=(tmp_path / "none.qcow2",))).level is Level.FAIL
    dirty = create(tmp_path / "dirty.qcow2", "-f", "qcow2", "64M")
    with dirty.open("r+b") as file:  # the lowest bits of qcow2's incompatible features: dirty, corrupt
        file.seek(79)
        file.write(b"\x02")
    assert "corrupt" in one("images", Subject(images=(dirty,))).text
    with dirty.open("r+b") as file:
        file.seek(79)
        file.write(b"\x01")
    assert "not closed cleanly" in one("images", Subject(images=(dirty,))).text
    broken = put(tmp_path, "broken.qcow2", "QFI\xfb nonsense")
    assert "it is no qcow2" in one("images", Subject(images=(broken,))).text


@needs_images
def test_what_a_guest_writes_to_its_raw_disk_is_not_taken_for_a_format(tmp_path: Path) -> None:
    """qemu-img would open what such a header names: other files of the host, addresses."""
    disk = create(tmp_path / "disk.img", "-f", "qcow2", "-F", "raw", "-b", "/dev/null", "64M")
    os.truncate(disk, 1 << 20)
    assert one("images", Subject(images=(disk,))).level is Level.WARN  # or this proves nothing
    raw = Subject(images=(disk,), raw=frozenset({disk}))
    assert one("images", raw).text == f"{disk}: raw, 1048576 bytes"
    assert one("image-sizes", raw).text == "disk.img 1048576"


def test_room_for_overlays(tmp_path: Path) -> None:
    assert look("overlay-space", Subject()) == []
    assert one("overlay-space", Subject(overlays=tmp_path / "not" / "yet")).level is Level.OK
    huge = tmp_path / "huge.raw"
    with huge.open("wb") as file:
        file.truncate(8 * shutil.disk_usage(tmp_path).free)
    assert one("overlay-space", Subject(overlays=tmp_path, images=(huge,))).level is Level.FAIL


# ------------------------------------------------------------------- software


@pytest.mark.parametrize(
    ("python", "openssl", "tls13", "level"),
    [
        ((3, 11, 0), (3, 0), True, Level.OK),
        ((3, 10, 9), (3, 0), True, Level.FAIL),
        ((3, 12, 1), (1, 1), True, Level.FAIL),
        ((3, 12, 1), (3, 2), False, Level.FAIL),
    ],
)
def test_python(python: tuple[int, ...], openssl: tuple[int, ...], tls13: bool, level: Level) -> None:
    (found,) = judge_versions(python, openssl, "OpenSSL", tls13)
    assert found.level is level
    assert one("python", Subject()).level is Level.OK


def test_systemd(tree: Path) -> None:
    assert "does not run systemd" in one("systemd", Subject(root=tree)).text
    (tree / "run/systemd/system").mkdir(parents=True)
    assert "cp packaging/systemd" in one("systemd", Subject(root=tree)).do
    put(tree, "etc/systemd/system/coloproxy@.service")
    assert one("systemd", Subject(root=tree)).level is Level.OK


def test_the_shim(monkeypatch: pytest.MonkeyPatch) -> None:
    assert one("tcg-shim", Subject()).level is Level.OK
    monkeypatch.setattr("coloproxy.vmm.acceleration.__file__", "/nonexistent/coloproxy/vmm/acceleration.py")
    assert one("tcg-shim", Subject()).level is Level.WARN


# --------------------------------------------------------------- a pair's file


@pytest.mark.parametrize("role", ["primary", "secondary"])
def test_what_a_pairs_file_says(role: str, tmp_path: Path) -> None:
    file = put(tmp_path, "pair.toml", PAIR)
    subject = of_pair(load(file, "primary" if role == "primary" else "secondary"), Subject())
    assert subject.peer == ("192.0.2.2" if role == "primary" else "192.0.2.1")
    assert subject.ports == (Port("link", "tcp", "192.0.2.2", 9810, ours=role == "secondary"),)
    assert [finding.level for finding in look("files", subject)] == [Level.FAIL]  # the key is not there
    assert look("files", Subject()) == []
    assert one("files", replace(subject, file_problems=())).level is Level.OK


NODE_PAIR = PAIR.replace('"192.0.2.2:9810"', '{ a = "192.0.2.1:9810", b = "192.0.2.2:9810" }') + NODE


@pytest.mark.parametrize("host", ["a", "b"])
def test_what_a_nodes_file_says(host: str, tmp_path: Path) -> None:
    """Either host listens when it is the secondary."""
    both = load_both(put(tmp_path, "pair.toml", NODE_PAIR + '[node.qemu]\noptions = ["-m", "1G"]\nbinary = "q"\n'))
    ours, its = (both["primary"], both["secondary"]) if host == "a" else (both["secondary"], both["primary"])
    subject = of_pair(ours, Subject(), its)
    addresses = ("192.0.2.1", "192.0.2.2") if host == "a" else ("192.0.2.2", "192.0.2.1")
    assert subject.peer == addresses[1]
    assert set(subject.ports) == {
        Port(what, protocol, address, number, ours=address == addresses[0])
        for address in addresses
        for what, protocol, number in (
            ("link", "tcp", 9810),
            ("nbd", "tcp", 9830),
            ("migration", "tcp", 9831),
            ("heartbeat link", "udp", 9820),
        )
    }
    assert (subject.images, subject.made) == ((Path("/vms/web.qcow2"),), host == "b")
    assert (subject.overlays, subject.ram_bytes, subject.qemu) == (Path("/var/lib/coloproxy/web"), 1 << 30, "q")
    assert subject.control_socket == Path(f"/run/coloproxy/web-{host}.sock")
    given = of_pair(ours, Subject(qemu="mine", images=(Path("/x"),), ram_bytes=7, overlays=Path("/o")), its)
    assert (given.qemu, given.images, given.ram_bytes, given.overlays) == ("mine", (Path("/x"),), 7, Path("/o"))


@needs_root
def test_an_image_that_the_node_makes(tmp_path: Path) -> None:
    here, nowhere = tmp_path / "a.qcow2", tmp_path / "no" / "b.qcow2"
    found = look("images", Subject(images=(here, nowhere), made=True))
    assert [finding.level for finding in found] == [Level.OK, Level.FAIL]
    assert look("images", Subject(images=(here,)))[0].level is Level.FAIL


@pytest.mark.parametrize(
    ("arbiter", "said"),
    [
        ('kind = "command"\ncommand = ["/none/arbiter"]', "node.arbiter.command[0]: /none/arbiter is no"),
        (
            'kind = "fence"\nfence = { agent = "fence_nothing" }',
            "node.arbiter.fence.agent: fence_nothing is no",
        ),
        (
            'kind = "etcd"\netcd = { endpoints = ["http://x"], ca = "/none" }',
            "node.arbiter.etcd.ca: /none: No such",
        ),
    ],
)
def test_what_an_arbiter_needs(arbiter: str, said: str, tmp_path: Path) -> None:
    pair = load(put(tmp_path, "pair.toml", f"{NODE_PAIR}[node.arbiter]\n{arbiter}\n"), "primary")
    assert any(finding.text.startswith(said) for finding in look("files", of_pair(pair, Subject())))
