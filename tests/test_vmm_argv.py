# SPDX-License-Identifier: Apache-2.0
"""QEMU's command line, what it refuses, and what QEMU says in words. Tables; no QEMU."""

from __future__ import annotations

import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import pytest

from coloproxy.errors import MisuseError, VmmError
from coloproxy.vmm import (
    Acceleration,
    Cause,
    Disk,
    Files,
    Machine,
    Role,
    command_line,
    explain_event,
    explain_exit,
    explain_status,
    ram_problem,
    shutdown_cause,
)
from coloproxy.vmm.acceleration import ram_bytes

KVM = Acceleration("kvm")
TCG = Acceleration("tcg", Path("/shim.so"))
FILES = Files.below(Path("/state"))
HEAD = [
    *("qemu-system-x86_64", "-name", "guest=web,debug-threads=on", "-no-user-config", "-nodefaults"),
    *("-display", "none", "-accel", "kvm", "-pidfile", "/state/qemu.pid"),
    *("-global", "virtio-device.use-disabled-flag=off"),
    *("-qmp", "unix:/state/control.qmp,server=on,wait=off"),
    *("-qmp", "unix:/state/oob.qmp,server=on,wait=off"),
    *("-qmp", "unix:/state/proxy.qmp,server=on,wait=off"),
]
QUORUM = "driver=quorum,node-name=colo-disk0,read-pattern=fifo,vote-threshold=1,children.0="
DEVICE = ["-device", "virtio-blk-pci,id=vdisk0,drive=colo-disk0"]
CHAIN = [
    *("-blockdev", "driver=file,node-name=sf0,filename=/i"),
    *("-blockdev", "driver=qcow2,node-name=parent0,file=sf0"),
    *("-blockdev", "driver=file,node-name=hf0,filename=/h"),
    *("-blockdev", "driver=qcow2,node-name=hidden0,file=hf0,backing=parent0"),
    *("-blockdev", "driver=file,node-name=af0,filename=/a"),
    *("-blockdev", "driver=qcow2,node-name=active0,file=af0,backing=hidden0"),
]
ONE_DISK = (Disk(Path("/i"), active=Path("/a"), hidden=Path("/h")),)

TABLE: list[tuple[str, Mapping[str, Any], Role, bool, list[str]]] = [
    ("nothing", {}, "primary", False, HEAD),
    ("paused", {}, "primary", True, [*HEAD, "-S"]),
    ("waits for a copy", {}, "secondary", False, [*HEAD, "-incoming", "defer"]),
    (
        "order: options, disks, NICs, ours, extra",
        {"options": ["-m", "1G"], "disks": ONE_DISK, "nics": ["-netdev", "n"], "extra": ["-device", "x"]},
        "secondary",
        False,
        [
            *HEAD,
            *("-m", "1G"),
            *CHAIN,
            *("-blockdev", "driver=replication,node-name=childs0,mode=secondary,top-id=colo-disk0,file=active0"),
            *("-blockdev", f"{QUORUM}childs0"),
            *DEVICE,
            *("-netdev", "n"),
            *("-incoming", "defer"),
            *("-device", "x"),
        ],
    ),
    (
        "a primary's disk",
        {"disks": ONE_DISK},
        "primary",
        False,
        [
            *HEAD,
            *("-blockdev", "driver=file,node-name=pf0,filename=/i"),
            *("-blockdev", "driver=qcow2,node-name=pd0,file=pf0"),
            *("-blockdev", f"{QUORUM}pd0"),
            *DEVICE,
        ],
    ),
    (
        "everything of a disk, and a second one",
        {
            "disks": [
                Disk(Path("/a,b"), "raw", device="ide-hd", device_options="bootindex=1", file_options="aio=native"),
                Disk(Path("/c")),
            ]
        },
        "primary",
        False,
        [
            *HEAD,
            *("-blockdev", "driver=file,node-name=pf0,filename=/a,,b,aio=native"),
            *("-blockdev", "driver=raw,node-name=pd0,file=pf0"),
            *("-blockdev", f"{QUORUM}pd0"),
            *("-device", "ide-hd,id=vdisk0,drive=colo-disk0,bootindex=1"),
            *("-blockdev", "driver=file,node-name=pf1,filename=/c"),
            *("-blockdev", "driver=qcow2,node-name=pd1,file=pf1"),
            *("-blockdev", f"{QUORUM.replace('disk0', 'disk1')}pd1"),
            *("-device", "virtio-blk-pci,id=vdisk1,drive=colo-disk1"),
        ],
    ),
    ("with QEMU's own devices", {"defaults": True}, "primary", False, [w for w in HEAD if w != "-nodefaults"]),
]


@pytest.mark.parametrize(("given", "role", "paused", "argv"), [row[1:] for row in TABLE], ids=[row[0] for row in TABLE])
def test_command_line(given: Mapping[str, Any], role: Role, paused: bool, argv: list[str]) -> None:
    assert command_line(Machine("web", KVM, **given), FILES, role, paused=paused) == argv


def test_devices_stand_in_the_same_order_in_every_role() -> None:
    machine = Machine(
        "web", KVM, options=["-device", "a"], disks=ONE_DISK, nics=["-device", "n"], extra=["-device", "b"]
    )
    lines = [command_line(machine, FILES, role) for role in get_args(Role)]
    places = [[argv[i + 1] for i, word in enumerate(argv) if word == "-device"] for argv in lines]
    assert places == [["a", DEVICE[1], "n", "b"]] * 2


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("-incoming defer", "takes in a copy"),
        ("--incoming tcp:0:1", "takes in a copy"),
        ("-S", "the node's to say"),
        ("-qmp unix:/x", "-mon chardev=mine"),
        ("-pidfile /x", "by the file"),
        ("-daemonize", "process id must stay"),
        ("-name x", "by its name"),
        ("-accel kvm", "acceleration ="),
        ("-enable-kvm", "acceleration ="),
        ("-machine pc,accel=kvm", "acceleration ="),
        ("-M accel=tcg", "acceleration ="),
        ("-snapshot", "temporary file"),
        ("-no-shutdown", "back into a running one"),
        ("-action reboot=reset,shutdown=pause", "back into a running one"),
        ("-runas nobody", "user to run as"),
        ("-loadvm x", "does not belong"),
        ("-blockdev driver=file,node-name=pf0,filename=/x", "pf0 is the node's"),
        ("-blockdev driver=qcow2,node-name=mine,file.driver=file,file.node-name=sf12", "sf12 is the node's"),
        ('-blockdev {"driver":"qcow2","node-name":"mine","file":{"node-name":"active0"}}', "active0 is the node's"),
        ("-drive file=/x,id=colo-disk0", "colo-disk0 is the node's"),
        ("-append -S -incoming x", "takes in a copy"),
    ],
)
@pytest.mark.parametrize("where", ["options", "extra"])
def test_options_that_clash_are_refused(options: str, said: str, where: str) -> None:
    given: dict[str, Any] = {where: options.split()}
    with pytest.raises(MisuseError, match=said):
        command_line(Machine("web", KVM, **given), FILES, "primary")


@pytest.mark.parametrize(
    "options",
    [
        "-append -S",
        "-machine pc,dump-guest-core=off -smp 2 -cpu host -uuid 1-2",
        "-blockdev driver=file,node-name=disk0,filename=/x",
        "-blockdev driver=file,node-name=pd,filename=/pd0",
        "-drive file=/pd0,id=cd,readonly=on",
        "-action panic=pause",
        "-chardev socket,id=mine,path=/x,server=on,wait=off -mon chardev=mine,mode=control",
        "-blockdev {broken",
    ],
)
def test_options_that_do_no_harm_are_not(options: str) -> None:
    argv = command_line(Machine("web", KVM, options=options.split()), FILES, "primary")
    assert argv[len(HEAD) :] == options.split()


def test_other_misuse() -> None:
    with pytest.raises(MisuseError, match=r"disk 0 \(/i\) has no overlays, which a secondary needs"):
        command_line(Machine("web", KVM, disks=[Disk(Path("/i"))]), FILES, "secondary")
    with pytest.raises(MisuseError, match="paused"):
        command_line(Machine("web", KVM), FILES, "secondary", paused=True)
    with pytest.raises(MisuseError, match="no name"):
        command_line(Machine("", KVM), FILES, "primary")
    with pytest.raises(VmmError, match="take another state_dir"):
        Files.below(Path("/" + "x" * 100))


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("192", 192 << 20),
        ("196616k", 196616 << 10),
        ("size=1.5G", 3 << 29),
        ("size=1g,slots=2,maxmem=4G", 1 << 30),
        ("maxmem=4G,slots=2", 128 << 20),
        ("1025k", 1032 << 10),  # QEMU rounds up
        ("8192b", 8192),
        ("lots", None),
    ],
)
def test_ram_is_read_as_qemu_does(text: str, size: int | None) -> None:
    assert ram_bytes(text) == size


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("-m 192", "-m 192: .* take -m 196616k"),
        ("-m 192 -m size=1G", "take -m 1048584k"),
        ("-smp 1", "default of 128 MiB: .* take -m 131080k"),
        ("-m 196616k", None),
        ("-m lots", None),
    ],
)
def test_ram_under_tcg(options: str, said: str | None) -> None:
    machine = Machine("web", TCG, options=options.split())
    if said is None:
        assert command_line(machine, FILES, "primary")
    else:
        with pytest.raises(MisuseError, match=said):
            command_line(machine, FILES, "primary")
    assert ram_problem(KVM, options.split()) is None


def test_the_advised_ram_is_taken() -> None:
    problem = ram_problem(TCG, ["-m", "3G"])
    assert problem is not None
    advised = problem.split("take -m ")[1].split(",")[0]
    assert ram_problem(TCG, ["-m", advised]) is None


@pytest.mark.parametrize(
    ("name", "data", "status", "said"),
    [
        (
            "SHUTDOWN",
            {"guest": True, "reason": "guest-shutdown"},
            None,
            "shut down: the guest was shut down from inside",
        ),
        ("SHUTDOWN", {"guest": False, "reason": "host-signal"}, None, "shut down: a signal to QEMU"),
        ("SHUTDOWN", {"guest": False, "reason": "new-in-9"}, None, "shut down: new-in-9"),
        ("RESET", {"guest": True, "reason": "guest-reset"}, None, "reset: the guest rebooted"),
        ("STOP", {}, "colo", "stands still for a checkpoint"),
        ("STOP", {}, "paused", "stopped by an operator"),
        ("STOP", {}, None, "by an operator or for a checkpoint"),
        ("GUEST_PANICKED", {"action": "pause"}, None, "panicked; action: pause"),
        (
            "BLOCK_IO_ERROR",
            {"device": "", "node-name": "colo-disk0", "operation": "write", "action": "stop", "nospace": True},
            None,
            "disk colo-disk0: write failed: no space left on the host; the VM is stopped",
        ),
        (
            "BLOCK_IO_ERROR",
            {"node-name": "pd0", "operation": "read", "action": "report", "reason": "Input/output error"},
            None,
            "disk pd0: read failed: Input/output error; the guest was told",
        ),
        (
            "QUORUM_REPORT_BAD",
            {"type": "flush", "node-name": "replication0", "error": "EIO"},
            None,
            "flush on replication0: EIO",
        ),
        ("COLO_EXIT", {"mode": "secondary", "reason": "error"}, None, "COLO ended on the secondary: an error"),
        ("MIGRATION", {"status": "failed"}, None, "the copy to the other host failed"),
    ],
)
def test_events_in_words(name: str, data: dict[str, object], status: str | None, said: str) -> None:
    assert said in str(explain_event(name, data, status))


@pytest.mark.parametrize("name", ["MIGRATION", "NIC_RX_FILTER_CHANGED", "VSERPORT_CHANGE"])
def test_events_that_say_nothing(name: str) -> None:
    assert explain_event(name, {"status": "active"}) is None


def test_states_that_nobody_knows_are_shown_as_they_are() -> None:
    assert explain_status("new-in-9") == "in state new-in-9"
    assert explain_status("running") == "runs"


@pytest.mark.parametrize(
    ("status", "reason", "cause", "said"),
    [
        (0, "guest-shutdown", Cause.GUEST, "from inside"),
        (None, "guest-shutdown", Cause.GUEST, "from inside"),
        (0, "host-qmp-quit", Cause.OPERATOR, "quit"),
        (0, "guest-panic", Cause.FAULT, "panicked"),
        (-signal.SIGSEGV, "guest-shutdown", Cause.FAULT, "crashed with SIGSEGV"),
        (-signal.SIGKILL, None, Cause.FAULT, "SIGKILL"),
        (-99, None, Cause.FAULT, "signal 99"),
        (1, None, Cause.FAULT, "exit status 1"),
        (0, None, Cause.OPERATOR, "by itself"),
        (None, None, Cause.FAULT, "without a word"),
    ],
)
def test_exits_in_words(status: int | None, reason: str | None, cause: Cause, said: str) -> None:
    found, text = explain_exit(status, None if reason is None else {"reason": reason})
    assert found is cause
    assert said in text


def test_a_reason_that_nobody_knows_is_the_guests_if_qemu_says_so() -> None:
    assert shutdown_cause({"guest": True, "reason": "new"}) is Cause.GUEST
    assert shutdown_cause({"guest": False, "reason": "new"}) is Cause.FAULT


@pytest.mark.parametrize("role", ["primary", "secondary"])
def test_the_documents_template(role: Role) -> None:
    text = (Path(__file__).parent.parent / "docs" / "vmm.md").read_text(encoding="utf-8")
    shown = text.split(f"### {role}\n```\n")[1].split("```")[0].replace("STATE", "/state").split()
    disks = [Disk(Path("IMAGE"), active=Path("ACTIVE"), hidden=Path("HIDDEN"))]
    assert shown == command_line(Machine("web", KVM, options=["-m", "4G"], disks=disks), FILES, role)


def test_the_documents_longest_directory() -> None:
    assert Files.below(Path("/" + "x" * 94))
    with pytest.raises(VmmError):
        Files.below(Path("/" + "x" * 95))
