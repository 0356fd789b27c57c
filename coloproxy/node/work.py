# SPDX-License-Identifier: Apache-2.0
"""What the table's long actions do to QEMU, the disks and the data path. Each may be begun again, wherever it stopped.

Nothing here decides. All of it works on what it finds: QEMU is asked, not remembered, but for `Kept.secondary`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final, Literal

from coloproxy import disks as replication
from coloproxy import vmm
from coloproxy.checkpoint_actions import ON_DEMAND_ONLY
from coloproxy.disks import Kind, images, recover, resync
from coloproxy.disks import primary as disk_primary
from coloproxy.disks import record as disk_record
from coloproxy.disks import secondary as disk_secondary
from coloproxy.errors import ColoproxyError, DiskError, MisuseError, QmpError, VmmBusy, VmmError
from coloproxy.vmm import QemuProcess

from .copying import OLD_NEWS_S, WATCHED, Copying
from .facts import VmView, other
from .halt import IO_ERROR
from .plane import Plane
from .record import RecordFile
from .setting import Setting

log = logging.getLogger(__name__)

COLO_S: Final = 60.0  # from the RAM's end to the first checkpoint's commit
STEP_S: Final = 5.0
CONNECT_S: Final = 1.0
COMMIT_S: Final = 600.0
EARLY_COMMIT_S: Final = 0.3  # before a client hears the guest
RUNS_S: Final = 5.0
RESUMES_S: Final = 1.0
_POLL_S: Final = 0.005
_MAX_BANDWIDTH: Final = 4 << 30  # bytes/s
_CAPABILITIES: Final = [{"capability": name, "state": True} for name in ("x-colo", "events")]
_MIGRATION: Final = {"type": "migration"}
_WAITS_FOR_CONT: Final = frozenset({"paused", "postmigrate", "finish-migrate", "prelaunch"})
_ENDED: Final = frozenset({"failed", "cancelled", "completed"})


class Work:
    """Of one node. `qemu`: its process; None: there is none."""

    def __init__(
        self,
        setting: Setting,
        state: vmm.StateDirectory,
        kept: RecordFile,
        plane: Plane,
        on_qemu: Callable[[QemuProcess], None],
    ) -> None:
        self.qemu: QemuProcess | None = None
        self.sizes: tuple[int, ...] = ()
        self.replicates = True
        """The disks may have a remote copy: what QEMU says of it counts."""
        self._setting = setting
        self._state = state
        self._kept = kept
        self._plane = plane
        self._on_qemu = on_qemu
        self._acceleration: vmm.Acceleration | None = None
        self._detached = -OLD_NEWS_S
        self.copying = Copying(setting.overlays)

    # ------------------------------------------------------------------ QEMU

    async def adopt(self) -> VmView:
        """The QEMU that an earlier coloproxy has left; what it does. Raises VmmError."""
        self.qemu = await QemuProcess.adopt(self._state, self._name)
        if self.qemu is None:
            return VmView.NONE
        self._on_qemu(self.qemu)
        return await self.view()

    async def view(self) -> VmView:
        """What QEMU does now. One that does not answer counts as in COLO: the probe ends it if it hangs."""
        if self.qemu is None or self.qemu.exited.done():
            return VmView.NONE
        try:
            colo = await self.qemu.execute("query-colo-status")
            goes_on = ("none", "processing")
            if isinstance(colo, Mapping) and colo.get("mode") != "none" and colo.get("reason") in goes_on:
                return VmView.COLO
            return VmView.WAITING if await self.qemu.status() == "inmigrate" else VmView.RUNNING
        except QmpError as error:
            log.warning("QEMU does not say what it does: %s", error)
            return VmView.COLO

    async def kill(self) -> None:
        """Idempotent. Raises VmmError: it does not end."""
        qemu, self.qemu = self.qemu, None
        if qemu is None:
            return
        try:
            await qemu.kill()
        finally:
            await qemu.close()

    async def gone(self) -> None:
        """It has ended by itself."""
        qemu, self.qemu = self.qemu, None
        if qemu is not None:
            await qemu.close()

    async def _launch(self, role: vmm.Role) -> QemuProcess:
        await self.kill()
        if self._acceleration is None:
            wanted = self._setting.node.qemu.acceleration
            self._acceleration = await asyncio.to_thread(vmm.choose_acceleration, wanted)
        machine = self._setting.machine(self._acceleration, self._plane.qemu_arguments(role))
        argv = vmm.command_line(machine, self._state.files, role)
        await self._plane.before_launch()
        await asyncio.to_thread(self._kept.note, secondary=role == "secondary", stopped=False)
        try:
            qemu = await QemuProcess.launch(
                self._state,
                self._name,
                argv,
                environment=self._acceleration.environment,
                user=self._setting.node.qemu.user,
            )
        except VmmBusy:  # one that an earlier coloproxy started just before its end
            found = await QemuProcess.adopt(self._state, self._name)
            if found is not None:
                await found.kill()
                await found.close()
            raise
        self.qemu = qemu
        self.replicates = role == "secondary"
        self._on_qemu(qemu)
        return qemu

    @property
    def _name(self) -> str:
        return self._setting.pair.vms[0].name

    # ---------------------------------------------------------------- SETTLE

    async def settle(self, generation: int, reason: str) -> None:
        """The VM runs by itself, and serves. Raises ColoproxyError."""
        await self.copying.end()
        await self.copying.forget()
        if self.qemu is not None and self.qemu.exited.done():
            await self.gone()
        if self.qemu is None:
            await self._start_owner()
        elif self._kept.kept.secondary:
            await self._take_over(self.qemu, generation, reason)
        else:
            await self._go_alone(self.qemu, reason)
        await self._plane.serve_alone()

    async def _start_owner(self) -> None:
        await self._plane.forget()
        overlays = self._setting.overlays
        overlays.mkdir(parents=True, exist_ok=True)
        await self._measure()
        disks = self._disks()
        if disks and await recover.needed(disks):
            log.info("a takeover was interrupted: its overlays are written into the images first")
            await recover.recover(disks)
        for disk in disks:
            await images.examine(disk.image, disk.format)
            await asyncio.to_thread(
                self._kept.note, made=str(disk.image)
            )  # from now on it is the pair's, to be written over if we fall behind
        await asyncio.to_thread(disk_record.forget_lineage, overlays)
        qemu = await self._launch("primary")
        await self._until_running(qemu)

    async def _take_over(self, qemu: QemuProcess, generation: int, reason: str) -> None:
        """docs/disks.md has the order; QEMU.md's measurements the reasons.

        An earlier coloproxy may have died at any line of it, and QEMU gone on. Each line can be done again; which were
        done already QEMU is asked, not the files.
        """
        disks = self._disks()
        await yank_migration(qemu)
        await self._plane.break_off()
        await self._begin_takeover(qemu, disks, generation)
        if not self._plane.knows_connections:
            log.warning("how clients' connections are numbered is not known since coloproxy was away: the VM is booted")
            await self._boot_from_disk(qemu, disks)
            return

        async def run_alone() -> None:
            await self._tell_takeover(qemu, disks)

        async def note_commit() -> None:
            with contextlib.suppress(DiskError, OSError):  # it is waited for below
                await self._end_takeover(qemu, disks, EARLY_COMMIT_S)

        await self._plane.take_over(reason, run_alone, note_commit)
        if not await self._end_takeover(qemu, disks, COMMIT_S):
            raise DiskError(Kind.DEADLINE, f"the overlays aren't committed after {COMMIT_S:g} s")
        if disks:
            await disk_secondary.clean_up(qemu, disks)
        await asyncio.to_thread(self._kept.note, secondary=False)

    async def _boot_from_disk(self, qemu: QemuProcess, disks: Sequence[replication.Disk]) -> None:
        """What the VM has on its disk, for a new one.

        QEMU is brought to the end of the takeover even so. It may have been told before, have committed, and have
        written newer blocks into the image: then the overlays are old, and must not be written over them.
        """
        await self._plane.forget()  # and nothing that QEMU says now makes it known again
        try:
            await self._tell_takeover(qemu, disks)
            await self._end_takeover(qemu, disks, COMMIT_S)
        except (QmpError, VmmError, DiskError) as error:  # what the overlays hold counts: it is committed without QEMU
            log.warning("the takeover could not be brought to its end: %s", error)
        await qemu.quit()
        await self.gone()
        await self._start_owner()

    async def _begin_takeover(self, qemu: QemuProcess, disks: Sequence[replication.Disk], generation: int) -> None:
        overlays = self._setting.overlays
        if disks and await disk_secondary.commit_done(qemu, disks):
            await asyncio.to_thread(disk_record.end_takeover, overlays)  # only the note of it was missing
        else:
            await asyncio.to_thread(disk_record.begin_takeover, overlays, generation)

    async def _tell_takeover(self, qemu: QemuProcess, disks: Sequence[replication.Disk]) -> None:
        """Until the VM runs by itself. Raises QmpError, VmmError, DiskError."""
        await disk_secondary.reset(qemu)
        if disks:
            with contextlib.suppress(DiskError):  # it counts only if this QEMU dies too
                await disk_secondary.flush(qemu)
        try:
            await qemu.execute("x-colo-lost-heartbeat", deadline_s=STEP_S)
        except QmpError:  # it was told before: we have been here
            with contextlib.suppress(QmpError):
                await qemu.execute("cont", deadline_s=STEP_S)
        await self._until_running(qemu, RESUMES_S)

    async def _end_takeover(self, qemu: QemuProcess, disks: Sequence[replication.Disk], deadline_s: float) -> bool:
        """When the commit is done; False: it isn't yet. Raises DiskError, of other kinds."""
        try:
            if disks:
                await disk_secondary.wait_commit(qemu, disks, deadline_s)
        except DiskError as error:
            if error.kind is not Kind.DEADLINE:
                raise
            return False
        await asyncio.to_thread(disk_record.end_takeover, self._setting.overlays)
        return True

    async def _go_alone(self, qemu: QemuProcess, reason: str) -> None:
        """The secondary is no more: whatever of it QEMU still waits for is broken off."""
        disks = self._disks()
        if disks:
            await disk_primary.yank(qemu, disks)
        await yank_migration(qemu)
        await self._plane.break_off()
        await self._plane.go_alone(reason)
        await resync.go_on(qemu, disks)  # not before: its question is in band, and waits for what is broken off above
        with contextlib.suppress(QmpError):  # it is not in COLO any more, or never was
            await qemu.execute("x-colo-lost-heartbeat", deadline_s=STEP_S)
        with contextlib.suppress(QmpError):
            await qemu.execute("migrate_cancel", deadline_s=STEP_S)
        if disks:
            await disk_primary.detach(qemu, disks)
            self._detached = time.monotonic()
        self.replicates = False
        await self._until_running(qemu)

    async def _until_running(self, qemu: QemuProcess, patience_s: float = RUNS_S) -> None:
        """Or is stopped by its full disk: it goes on by itself then (halt.py).

        patience_s: until it is told to, once. Raises VmmError: it does not come to run; QmpError.
        """
        begun, told = time.monotonic(), False
        while (status := await qemu.status()) not in ("running", IO_ERROR):
            waited = time.monotonic() - begun
            if waited >= patience_s and not told and status in _WAITS_FOR_CONT:
                await qemu.execute("cont")
                begun, told = time.monotonic(), True
            elif waited >= RUNS_S:
                raise VmmError(f"the VM does not run: QEMU is {vmm.explain_status(status)}")
            await asyncio.sleep(_POLL_S)

    # --------------------------------------------------------------- PREPARE

    async def prepare(self, sizes: Sequence[int]) -> str:
        """A QEMU that waits for the primary's state, its images exported; the name of this offer.

        sizes: of the primary's disks. Raises ColoproxyError.
        """
        await self._plane.end()
        await self.kill()
        if len(sizes) != len(self._setting.node.disks):
            raise MisuseError(f"the primary has {len(sizes)} disks, this host's file {len(self._setting.node.disks)}")
        overlays = self._setting.overlays
        overlays.mkdir(parents=True, exist_ok=True)
        await asyncio.to_thread(
            disk_record.end_takeover, overlays
        )  # whatever it was, the data here are worth nothing now
        await self.copying.end()
        await self.copying.load()
        self.sizes = tuple(sizes)
        disks = self._disks()
        for disk, given in zip(disks, self._setting.node.disks, strict=True):
            await self._blank(disk, overwrite=given.overwrite)
        await images.prepare_overlays(disks)
        for disk in disks:
            await self._give(disk.active_file, disk.hidden_file)
        qemu = await self._launch("secondary")
        await qemu.execute("migrate-set-capabilities", {"capabilities": _CAPABILITIES})
        tls = await self._credentials(qemu, "server")
        await qemu.execute("migrate-set-parameters", {"tls-creds": tls})
        await qemu.execute("migrate-incoming", {"uri": self._setting.migration(self._setting.host)})
        if disks:
            await disk_secondary.prepare(qemu, disks, self._setting.nbd(self._setting.host, tls))
        await self._plane.become_secondary()
        return secrets.token_hex(8)

    async def _blank(self, disk: replication.Disk, *, overwrite: bool) -> None:
        """An image of that size: what is there, if it is sound, else one to be written over from beginning to end."""
        path = str(disk.image)
        if not disk.image.exists():
            await self._make_blank(disk)
            return
        if path not in self._kept.kept.made and not overwrite:
            raise MisuseError(
                f"{path} is there, and this node has not made it: move it away, or say overwrite = true, "
                "for it would be written over with the other host's"
            )
        with contextlib.suppress(DiskError):
            await images.examine(disk.image, disk.format, size=disk.size)
            return
        disk.image.unlink()
        await self._make_blank(disk)

    async def _make_blank(self, disk: replication.Disk) -> None:
        await self.copying.forget()
        await images.make_blank(disk.image, disk.format, disk.size)
        await self._give(disk.image)
        await asyncio.to_thread(self._kept.note, made=str(disk.image))

    async def _give(self, *paths: Path) -> None:
        """To the user that QEMU runs as; we have made them. Raises VmmError."""
        user = self._setting.node.qemu.user
        if user is None:
            return
        account = vmm.Account.named(user)
        for path in paths:
            try:
                await asyncio.to_thread(vmm.give, path, account.uid, account.gid)
            except OSError as error:
                raise VmmError(f"{path}: can't be given to user {user}: {error.strerror}") from error

    # --------------------------------------------------------------- PROTECT

    async def protect(self, offer: str) -> None:
        """Copies the disks to the waiting secondary of that offer, and migrates into COLO. Raises ColoproxyError."""
        qemu = self.qemu
        if qemu is None:
            raise VmmError("there is no QEMU")
        peer, token = other(self._setting.host), ""
        await self._measure()
        disks = self._disks()
        await self._until_not_halted(qemu)
        tls = await self._credentials(qemu, "client")
        nbd = self._setting.nbd(peer, tls)
        await self._until_reachable(nbd if disks else None)
        await self._hear_old_news(qemu)
        with contextlib.ExitStack() as stack:
            since = stack.enter_context(qemu.watch(*WATCHED))
            if disks:
                token = await self.copying.copy(qemu, disks, nbd, offer, self._setting.node.resync_speed)
            await self._until_not_halted(qemu)
            await self._plane.become_primary()
            period = self._setting.pair.checkpoint.timing().checkpoint_delay_ms or ON_DEMAND_ONLY
            await qemu.execute("migrate-set-capabilities", {"capabilities": _CAPABILITIES})
            await qemu.execute(
                "migrate-set-parameters",
                {"x-checkpoint-delay": period, "max-bandwidth": _MAX_BANDWIDTH, "tls-creds": tls},
            )
            with qemu.watch("MIGRATION", "RESUME", "COLO_EXIT") as events:
                await qemu.execute("migrate", {"uri": self._setting.migration(peer)})
                await events.next(_is_colo, 24 * 3600.0)
                await events.next(_is_resumed, COLO_S)
            if disks:
                self.copying.settle(qemu, disks, token, since, stack.pop_all().close)

    async def _credentials(self, qemu: QemuProcess, end: Literal["server", "client"]) -> str:
        """As QEMU's `tls-creds` has it, which is "" for plain text. Raises MisuseError, QmpError, VmmError."""
        credentials = self._setting.credentials()
        return "" if credentials is None else await credentials.offer(qemu, end)

    async def _until_not_halted(self, qemu: QemuProcess) -> None:
        """QEMU ends itself by an assertion when a VM that its disk has stopped goes into COLO. Raises QmpError."""
        while await qemu.status() == IO_ERROR:  # noqa: ASYNC110 - QEMU's state, which watch.py changes
            await asyncio.sleep(self._setting.node.retry / 1e9)

    async def _until_reachable(self, nbd: replication.Peer | None) -> None:
        """While QEMU connects, its VM stands still: so first it is seen from here whether somebody would answer."""
        while nbd is not None:
            try:
                async with asyncio.timeout(CONNECT_S):
                    _, writer = await asyncio.open_connection(nbd.host, nbd.port)
                writer.close()
            except (OSError, TimeoutError) as error:
                log.info("%s:%d, where the secondary's disks are, can't be reached yet: %s", nbd.host, nbd.port, error)
                await asyncio.sleep(self._setting.node.retry / 1e9)
            else:
                return

    async def _hear_old_news(self, qemu: QemuProcess) -> None:
        """QEMU tells of a failed write up to a second late (it limits how often): that copy is not the one to be made.

        Raises QmpError.
        """
        await asyncio.sleep(self._detached + OLD_NEWS_S - time.monotonic())
        for _ in range(2):  # behind all that it had to say, were its main loop late
            await qemu.status()
        self.replicates = True

    # ------------------------------------------------------------------ disks

    async def _measure(self) -> None:
        """The sizes of our images, once. Raises DiskError."""
        if not self.sizes:
            found = [
                await images.inspect(Path(disk.image), disk.format) if self.qemu is None else await self._size_of(index)
                for index, disk in enumerate(self._setting.node.disks)
            ]
            self.sizes = tuple(image if isinstance(image, int) else image.size for image in found)

    async def _size_of(self, index: int) -> int:
        """As QEMU knows it: the image is locked while it runs."""
        assert self.qemu is not None
        nodes = await self.qemu.execute("query-named-block-nodes")
        name = f"colo-disk{index}"
        if isinstance(nodes, list):
            for node in nodes:
                if node.get("node-name") == name:
                    return int(node["image"]["virtual-size"])
        raise VmmError(f"QEMU has no disk {name}")

    def _disks(self) -> list[replication.Disk]:
        if not self.sizes and self._setting.node.disks:
            raise VmmError("the disks' sizes are not known yet")
        return self._setting.disks(self.sizes)

    async def know_sizes(self) -> None:
        """As far as they can be known now. Never raises."""
        with contextlib.suppress(ColoproxyError):
            await self._measure()


async def yank_migration(qemu: QemuProcess) -> None:
    """Out of band, before anything else when COLO is to end; never an error. See coloproxy.run.yank."""
    with contextlib.suppress(QmpError):
        listed = await qemu.execute("query-yank", out_of_band=True)
        if isinstance(listed, list) and _MIGRATION in listed:
            await qemu.execute("yank", {"instances": [_MIGRATION]}, out_of_band=True)


def _is_colo(event: vmm.Event) -> bool:
    if event.name == "COLO_EXIT":
        raise VmmError(f"COLO ended before it began: {event.data.get('reason')}")
    if event.name != "MIGRATION":
        return False
    if event.data.get("status") in _ENDED:
        raise VmmError(f"migration ended as {event.data['status']}, not in COLO; the secondary's qemu.log may say why")
    return event.data.get("status") == "colo"


def _is_resumed(event: vmm.Event) -> bool:
    if event.name == "COLO_EXIT":
        raise VmmError(f"COLO ended before its first checkpoint: {event.data.get('reason')}")
    return event.name == "RESUME"
