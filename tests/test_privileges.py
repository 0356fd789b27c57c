# SPDX-License-Identifier: Apache-2.0
"""Giving up root, in a process of its own each time: there is no way back."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from coloproxy.errors import MisuseError
from coloproxy.run.privileges import CAPABILITIES, Identity, drop, identity

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to give it up")

NET_ADMIN, NET_RAW, SETPCAP = 1 << 12, 1 << 13, 1 << 8

PROLOGUE = """
import json, os, socket, subprocess, sys, threading
from pathlib import Path
from coloproxy.run.privileges import Identity, drop, identity

def state(text):
    fields = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
    caps = {name: int(fields[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")}
    ids = {name: [int(n) for n in fields[name].split()] for name in ("Uid", "Gid", "Groups")}
    return {**caps, **ids, "NoNewPrivs": int(fields["NoNewPrivs"])}

def refused(call, *arguments):
    try:
        call(*arguments)
    except OSError as error:
        return error.errno
    return None

def tell(**what):
    print(json.dumps(what))
"""


def child(code: str, *prefix: str) -> dict[str, Any]:
    """What that code tells, run as root in a process of its own."""
    command = [*prefix, sys.executable, "-P", "-c", PROLOGUE + code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    told: dict[str, Any] = json.loads(done.stdout)
    return told


@needs_root
def test_a_user_with_one_capability_is_left() -> None:
    told = child("""
os.setgroups([0, 4])
drop(identity("nobody", "nogroup"), {"NET_ADMIN"})
tell(**state(Path("/proc/thread-self/status").read_text()),
     child=state(subprocess.run(["cat", "/proc/self/status"], capture_output=True, text=True).stdout),
     shadow=refused(open, "/etc/shadow"), back=refused(os.setuid, 0), group=refused(os.setgid, 0),
     raw=refused(socket.socket, socket.AF_PACKET, socket.SOCK_RAW, 0))
""")
    nobody, nogroup = 65534, 65534
    assert told["Uid"] == [nobody] * 4
    assert told["Gid"] == [nogroup] * 4
    assert set(told["Groups"]) <= {nogroup}
    assert {name: told[name] for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs")} == {
        "CapInh": 0, "CapPrm": NET_ADMIN, "CapEff": NET_ADMIN, "CapBnd": NET_ADMIN, "CapAmb": 0, "NoNewPrivs": 1,
    }  # fmt: skip
    assert (told["child"]["CapEff"], told["child"]["CapPrm"], told["child"]["NoNewPrivs"]) == (0, 0, 1)
    assert (told["shadow"], told["back"], told["group"], told["raw"]) == (13, 1, 1, 1)


@needs_root
def test_what_is_kept_works() -> None:
    told = child(
        """
import pyroute2
drop(identity("nobody"), ["CAP_NET_ADMIN", "net_raw"])
socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0).close()
with pyroute2.IPRoute() as ip:
    ip.link("add", ifname="br7", kind="bridge")
    ip.link("set", index=ip.link_lookup(ifname="br7")[0], state="up")
    tell(there=bool(ip.link_lookup(ifname="br7")))
""",
        *("unshare", "--net"),
    )
    assert told == {"there": True}


@needs_root
def test_nothing_may_be_kept() -> None:
    told = child('drop(identity("nobody"), ())\ntell(**state(Path("/proc/self/status").read_text()))')
    assert [told[name] for name in ("CapPrm", "CapEff", "CapBnd", "CapAmb", "CapInh")] == [0] * 5


@needs_root
def test_the_user_may_stay() -> None:
    told = child('drop(None, {"NET_ADMIN"})\ntell(**state(Path("/proc/self/status").read_text()))')
    assert told["Uid"] == [0] * 4
    assert [told[name] for name in ("CapPrm", "CapEff", "CapBnd", "NoNewPrivs")] == [NET_ADMIN] * 3 + [1]


@needs_root
def test_twice_is_once() -> None:
    told = child("""
drop(identity("nobody"), {"NET_ADMIN", "NET_RAW"})
drop(identity("nobody"), {"NET_ADMIN"})
tell(**state(Path("/proc/self/status").read_text()))
""")
    assert told["CapPrm"] == NET_ADMIN
    assert told["CapBnd"] == NET_ADMIN | NET_RAW  # CAP_SETPCAP was gone by then


@needs_root
def test_a_user_by_number_that_has_no_entry() -> None:
    told = child(
        'os.setgroups([0]); drop(identity("54321", "54322"), ())\ntell(**state(Path("/proc/self/status").read_text()))'
    )
    assert (told["Uid"], told["Gid"], told["Groups"]) == ([54321] * 4, [54322] * 4, [])


@needs_root
def test_other_threads_lose_all() -> None:
    told = child("""
go, done, seen = threading.Event(), threading.Event(), []
def other():
    go.wait()
    seen.append(state(Path("/proc/thread-self/status").read_text()))
thread = threading.Thread(target=other)
thread.start()
drop(identity("nobody"), {"NET_ADMIN"})
go.set()
thread.join()
tell(**seen[0])
""")
    assert (told["Uid"], told["CapPrm"], told["CapEff"]) == ([65534] * 4, 0, 0)


@needs_root
def test_a_thread_that_keeps_more_is_noticed() -> None:
    """Without a change of user, a thread that was there keeps what it has."""
    told = child("""
from coloproxy.errors import NativeError
go = threading.Event()
thread = threading.Thread(target=go.wait)
thread.start()
try:
    drop(None, {"NET_ADMIN"})
except NativeError as error:
    tell(error=str(error))
go.set()
""")
    assert told["error"].startswith("a thread that ran before has CAP_CHOWN, ")


@needs_root
@pytest.mark.parametrize(
    ("code", "text"),
    [
        ('drop(identity("nobody"), {"NET_ADMIN"}); drop(None, {"NET_RAW"})', "CAP_NET_RAW is missing"),
        ('drop(identity("nobody"), ()); drop(identity("daemon"), ())', "run as root to become another user"),
        ('os.setresgid(1, 1, 1); drop(identity("root"), ())', "root is no unprivileged user"),
    ],
)
def test_refused_before_anything_changes(code: str, text: str) -> None:
    told = child(f"""
from coloproxy.errors import MisuseError
first, second = {code!r}.split("; ")
exec(first)
before = Path("/proc/self/status").read_text()
try:
    exec(second)
except MisuseError as error:
    tell(error=str(error), same=state(before) == state(Path("/proc/self/status").read_text()))
""")
    assert text in told["error"]
    assert told["same"]


@needs_root
def test_without_the_right_to_shrink_the_bounding_set() -> None:
    """As under systemd, with a CapabilityBoundingSet that lacks CAP_SETPCAP."""
    told = child("""
from coloproxy.run import privileges
privileges._capset(1 << 6 | 1 << 7 | 1 << 12)  # SETGID, SETUID, NET_ADMIN
drop(identity("nobody"), {"NET_ADMIN"})
tell(**state(Path("/proc/self/status").read_text()))
""")
    assert (told["Uid"], told["CapPrm"], told["CapEff"], told["NoNewPrivs"]) == ([65534] * 4, NET_ADMIN, NET_ADMIN, 1)


@pytest.mark.parametrize(
    ("user", "group", "text"),
    [
        ("no-such-user", None, "process.user: there is no user 'no-such-user'"),
        ("54321", None, "process.user: there is no user '54321'"),
        ("root", "no-such-group", "process.group: there is no group 'no-such-group'"),
    ],
)
def test_who_is_not_there(user: str, group: str | None, text: str) -> None:
    with pytest.raises(MisuseError, match=text):
        identity(user, group)


def test_who_is_there() -> None:
    assert identity("root") == Identity(0, 0, "root")
    assert identity("0", "7") == Identity(0, 7, "root")
    assert identity("54321", "7") == Identity(54321, 7)


def test_no_such_capability() -> None:
    with pytest.raises(MisuseError, match="there is no capability 'NET_EVERYTHING'"):
        drop(None, {"NET_EVERYTHING"})


def test_the_kernel_has_no_capability_that_we_do_not_know() -> None:
    assert len(CAPABILITIES) >= int(Path("/proc/sys/kernel/cap_last_cap").read_text()) + 1
