# SPDX-License-Identifier: Apache-2.0
"""`coloproxy config` and `coloproxy qemu-args` as people call them, and the tables of docs/configuration.md."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from pair_files import ANOTHER_NIC, ANOTHER_VM, PAIR, changed
from typer.testing import CliRunner

from coloproxy.cli import app
from coloproxy.errors import ConfigError
from coloproxy.pair.config import ROLES, Role, parse
from coloproxy.pair.describe import defaults, tables

TOP = Path(__file__).resolve().parent.parent


def run(*arguments: str | Path) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    return result.exit_code, result.stdout, result.stderr


def file(directory: Path, text: str = PAIR) -> Path:
    path = directory / "pair.toml"
    path.write_text(text)
    return path


# ------------------------------------------------------------------- check


def test_check_says_what_it_makes_of_both_hosts(tmp_path: Path) -> None:
    code, out, err = run("config", "check", file(tmp_path))
    assert (code, err) == (0, "")
    assert (
        out
        == f"""\
primary of pair web
  link        connects to 192.0.2.2:9810, psk
  checkpoints qmp
  control     /run/coloproxy/web-primary.sock
  VM web, QMP at unix:/run/web.qmp
    nic0: TAP webp on br0, MTU 1500 <-> stream unix:/run/web-nic0.sock
secondary of pair web
  link        listens on 192.0.2.2:9810, psk
  checkpoints qmp
  control     /run/coloproxy/web-secondary.sock
  VM web, QMP at unix:/run/web.qmp
    nic0: TAP webs on br0, MTU 1500 <-> stream unix:/run/web-nic0.sock
{tmp_path}/pair.toml: OK
"""
    )


def test_check_tells_all_mistakes_and_ends_with_2(tmp_path: Path) -> None:
    path = file(tmp_path, changed('bridge = "br0"', 'mtu = 1, qeues = "a"'))
    code, out, err = run("config", "check", path)
    assert (code, out) == (2, "")
    assert err == (
        f"{path}:15: vm.web.nic[0].tap.mtu: must be between 68 and 65521\n"
        f'{path}:15: vm.web.nic[0].tap.qeues: unknown key, did you mean "queues"?\n'
    )


def test_check_with_a_role_looks_at_that_hosts_files(tmp_path: Path) -> None:
    rules, psk, program = tmp_path / "rules.toml", tmp_path / "psk", tmp_path / "program"
    text = changed('"/etc/b.psk"', f'"{psk}"', changed('"/etc/a.psk"', f'"{tmp_path}"'))
    text += (
        f'[compare]\nrules = "{rules}"\nrecord = "{tmp_path}/no/x.pcapng"\nrecord_ring = "1s"\nrecord_dir = "{psk}"\n'
    )
    text += f'[checkpoint]\nback_end = "command"\ncommand = ["{program}"]\n'
    path = file(tmp_path, text)
    assert run("config", "check", path)[0] == 0  # only the file itself
    code, out, err = run("config", "check", path, "--role", "primary")
    assert code == 1
    assert "secondary of pair" not in out
    assert err.splitlines() == [
        f"{path}: link.psk_file: {tmp_path} is no file",
        f"{path}: compare.rules: {rules}: [Errno 2] No such file or directory: '{rules}'",
        f"{path}: checkpoint.command[0]: {program} is no program that can be run",
        f"{path}: compare.record_dir: {psk} is no directory",
        f"{path}: compare.record: {tmp_path}/no is no directory",
    ]
    psk.write_text("secret")
    psk.chmod(0o644)
    assert f"{path}: link.psk_file: {psk} is a secret, but others may read or change it (mode 644)" in run(
        "config", "check", path, "--role", "secondary"
    )[2]  # fmt: skip
    psk.chmod(0o640)
    (tmp_path / "no").mkdir()
    rules.write_text("")
    path = file(tmp_path, re.sub("record_(ring|dir) = .*\n", "", text))
    assert run("config", "check", path, "--role", "secondary")[0] == 0  # the command is the primary's


# ------------------------------------------------------------------- show-defaults


def test_show_defaults_is_a_right_file(tmp_path: Path) -> None:
    code, out, _ = run("config", "show-defaults")
    assert (code, out) == (0, defaults())
    assert run("config", "check", file(tmp_path, out))[0] == 0


def section(lines: list[str], first: int) -> range:
    """The lines of the table whose head stands there, tables inside it included."""
    name = lines[first].strip("#[]")
    heads = (number for number in range(first + 1, len(lines)) if re.match(r"#*\[", lines[number]))
    last = (number for number in heads if not lines[number].lstrip("#[").startswith(f"{name}."))
    return range(first, next(last, len(lines)))


def with_less_marks(lines: list[str], which: range) -> list[str]:
    """One "#" less where there is one that is no comment's."""
    return [re.sub(r"^#(?! |$)", "", line) if number in which else line for number, line in enumerate(lines)]


def with_optional_tables(text: str) -> str:
    """With [node], without what is not needed in it."""
    lines = text.splitlines()
    for number, line in enumerate(lines):
        if line.startswith("#["):
            lines = with_less_marks(lines, section(lines, number))
            break
    return "\n".join(lines)


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("text", [defaults(), with_optional_tables(defaults())], ids=["run", "node"])
def test_show_defaults_says_the_defaults(text: str, role: Role) -> None:
    """What it writes out is what a file without these lines means."""
    everything = parse(text, role)
    assert (everything.node is not None) == ("\n[node]" in text)
    examples = {"name", "primary", "secondary", "psk_file", "qmp", "mac", "bridge", "address"}
    kept = [line for line in text.splitlines() if line.startswith("[") or line.partition(" = ")[0] in examples]
    assert parse("\n".join(kept), role) == everything


def test_show_defaults_has_every_key() -> None:
    keys = set(re.findall(r"^#*(\w+) = ", defaults(), re.MULTILINE))
    assert keys == set(re.findall(r"^\| `(\w+)` \|", tables(), re.MULTILINE))
    assert "None" not in defaults()


def each_commented(lines: list[str], which: range) -> Iterator[list[str]]:
    """The file with one of its commented keys, or tables, and then with each of those in that table."""
    number = which.start
    while number < which.stop:
        inner = section(lines, number) if lines[number].startswith("#[") else range(number, number + 1)
        if re.match(r"#(\[|\w+ = )", lines[number]):
            yield (without := with_less_marks(lines, inner))
            if len(inner) > 1:
                yield from each_commented(without, inner)
        number = inner.stop


def test_commented_keys_are_right_where_they_may_stand() -> None:
    """Each example is a value that its key takes: uncommented, no error is of its value."""
    lines = defaults().splitlines()
    left = {number for number, line in enumerate(lines) if re.match(r"#+(\[|\w+ = )", line)}
    for text in each_commented(lines, range(len(lines))):
        left -= {number for number in left if not text[number].startswith("#")}
        try:
            parse("\n".join(text), "primary")
        except ConfigError as error:
            for problem in error.problems:
                assert re.search("is only used with|needs record|is used twice", problem), problem
    assert left == set()


def test_the_documented_tables_are_the_models() -> None:
    text = (TOP / "docs" / "configuration.md").read_text(encoding="utf-8")
    (inside,) = re.findall(r"<!-- tables: .*? -->\n\n(.*?)\n<!-- end of tables -->", text, re.DOTALL)
    assert inside == tables()


@pytest.mark.parametrize("role", ROLES)
def test_the_documented_examples_are_right(role: Role) -> None:
    text = (TOP / "docs" / "configuration.md").read_text(encoding="utf-8")
    examples = [each for each in re.findall(r"```toml\n(.*?)```", text, re.DOTALL) if "[link]" in each]
    assert len(examples) == 3
    for example in examples:
        parse(example, role)


# ------------------------------------------------------------------- qemu-args


def test_qemu_args_for_a_shell(tmp_path: Path) -> None:
    code, out, _ = run("qemu-args", "--role", "primary", "-c", file(tmp_path))
    assert code == 0
    assert out == (
        "-qmp unix:/run/web.qmp,server=on,wait=off \\\n"
        "-global virtio-device.use-disabled-flag=off \\\n"
        "-netdev stream,id=hn0,server=on,addr.type=unix,addr.path=/run/web-nic0.sock \\\n"
        "-device virtio-net-pci,netdev=hn0,mac=52:54:00:12:34:56\n"
    )


def test_both_forms_say_the_same(tmp_path: Path) -> None:
    path = file(tmp_path, changed("web-nic0.sock", "it's, here.sock"))
    _, text, _ = run("qemu-args", "--role", "primary", "-c", path, "--shell")
    _, array, _ = run("qemu-args", "--role", "primary", "-c", path, "--json")
    assert shlex.split(text.replace("\\\n", "")) == json.loads(array)
    words = json.loads(array)
    assert words[words.index("-netdev") + 1].endswith(",addr.path=/run/it's,, here.sock")


def test_the_filters_come_with_their_compare(tmp_path: Path) -> None:
    path = file(tmp_path)
    _, out, _ = run("qemu-args", "--role", "primary", "-c", path, "--attach", "filters", "--vnet-hdr-support")
    assert out.endswith(
        "\n# beside it: coloproxy compare --primary-in 127.0.0.1:9001 --secondary-in 192.0.2.1:9002"
        " --outdev 127.0.0.1:9004 --qmp unix:/run/web.qmp --vnet-hdr-support\n"
    )
    _, out, _ = run("qemu-args", "--role", "secondary", "-c", path, "--attach", "filters")
    assert "#" not in out


@pytest.mark.parametrize(
    ("text", "arguments", "told"),
    [
        (PAIR + ANOTHER_VM, [], "which VM? --vm NAME is needed; there are web, mail"),
        (PAIR, ["--vm", "other"], "no VM is called 'other'; there are web"),
        (PAIR + ANOTHER_VM, ["--vm", "mail"], "vm.mail: nic0: mac is missing"),
        (PAIR + ANOTHER_NIC, ["--attach", "filters"], "the filter attach is for one NIC, 2 are there"),
        (PAIR.replace('primary = "192.0.2.1"\n', ""), ["--attach", "filters"], "link.primary is missing"),
        (changed('address = "unix:/run/web-nic0.sock"', 'kind = "tap", name = "x"'), [], 'kind = "tap" is a TAP of'),
        ("a = ", [], "pair.toml:1:5: invalid value"),
    ],
)
def test_qemu_args_refused(tmp_path: Path, text: str, arguments: list[str], told: str) -> None:
    code, out, err = run("qemu-args", "--role", "primary", "-c", file(tmp_path, text), *arguments)
    assert (code, out) == (2, "")
    assert told in err
