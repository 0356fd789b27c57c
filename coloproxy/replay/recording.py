# SPDX-License-Identifier: Apache-2.0
"""Recordings of `coloproxy compare --record`: fed again in the recorded order, is each verdict the recorded one?

A recording is pcapng with three interfaces; the comments of its packets and of its section header tell what the
comparator was, in which order it was fed, and what it said. See docs/replay.md.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final, cast

from coloproxy import rules
from coloproxy.capture import CapturedFrame, CaptureReader
from coloproxy.comparator import Comparator, Discarded, Frame, Released
from coloproxy.config import ComparatorOptions
from coloproxy.errors import CaptureError, MisuseError
from coloproxy.events import FrameClass, Side

__all__ = ["HEAD", "MAX_MISMATCHES", "Mismatch", "RecordingResult", "is_recording", "replay_recording"]

HEAD: Final = "coloproxy recording 1 "
MAX_MISMATCHES: Final = 1000

_SIDES: Final = {"primary_in": Side.PRIMARY, "secondary_in": Side.SECONDARY}
_NUMBERS: Final = (
    "max_flows", "max_frames", "max_bytes", "max_flow_frames", "max_flow_bytes", "max_fragments", "reorder_frames",
    "compare_timeout", "reorder_window", "gap_window",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Mismatch:
    """A frame of which the replay says another thing than the recording.

    Attributes:
        number: of the packet in the file.
        seq: its place in the order of feeding.
        side: whose.
        recorded, replayed: verdict and reason, as ``released matched``; ``withheld``: none until the end.
    """

    number: int
    seq: int
    side: Side
    recorded: str
    replayed: str


@dataclass(frozen=True, slots=True)
class RecordingResult:
    """What a replay of a recording found.

    Attributes:
        path: the file.
        options: the comparator's, as the file has them.
        frames: how many were fed.
        marks: stops, commits and the like.
        same: frames whose verdict is the recorded one.
        different: those whose verdict is another; ``mismatches`` has the first ``MAX_MISMATCHES`` of them.
        unfed: recorded frames that the recorded comparator never had (``verdict=dropped``).
        notes: sentences for people.
    """

    path: str
    options: dict[str, Any]
    frames: int
    marks: int
    same: int
    different: int
    unfed: int
    mismatches: tuple[Mismatch, ...]
    notes: tuple[str, ...]

    @property
    def equal(self) -> bool:
        """Every verdict is the recorded one."""
        return not self.different


@dataclass(frozen=True, slots=True)
class _Step:
    frame: CapturedFrame
    words: dict[str, str]


def is_recording(path: str) -> bool:
    """Whether a file says of itself that it is a recording. Raises CaptureError."""
    with CaptureReader(path) as reader:
        return any(comment.startswith(HEAD) for comment in reader.comments)


def replay_recording(path: str, progress: Callable[[int, int], None] | None = None) -> RecordingResult:
    """Feeds a recording to a new comparator.

    Raises:
        CaptureError: it can't be read, or is no recording of the kind that is known here.
    """
    replay = _Replay(path, progress)
    best = replay.run()
    # Where both sides of a stream are cut into other segments, one can be some bytes ahead of the other though nothing
    # is held. A real difference shows itself from wherever one begins.
    for begin in replay.other_beginnings():
        if best.equal:
            break
        best = min(best, _Replay(path, progress, begin).run(), key=lambda result: result.different)
    return best


class _Replay:
    def __init__(self, path: str, progress: Callable[[int, int], None] | None, begin: int | None = None) -> None:
        self._begin = begin
        self._quiet: list[int] = []
        self._path = path
        self._progress = progress
        self._fed: dict[int, tuple[_Step, int]] = {}
        self._count = self._marks = self._same = self._different = self._unfed = self._lost = 0
        self._gaps = False
        self._mid = False
        self._early = 0
        self._mismatches: list[Mismatch] = []

    def run(self) -> RecordingResult:
        with CaptureReader(self._path) as reader:
            head = next((text for text in reader.comments if text.startswith(HEAD)), None)
            if head is None:
                raise CaptureError(self._path, None, "is no recording of coloproxy")
            told = self._head(head.removeprefix(HEAD))
            try:
                self._comparator = Comparator(**_options(told))
            except (MisuseError, KeyError, TypeError, ValueError) as error:
                raise CaptureError(self._path, None, f"has options that can't be used ({error})") from error
            for seq, step in self._in_order(reader):
                self._feed(seq, step)
        for step, seq in self._fed.values():
            self._judge(step, seq, "withheld")
        return RecordingResult(
            path=self._path,
            options=told,
            frames=self._count,
            marks=self._marks,
            same=self._same,
            different=self._different,
            unfed=self._unfed,
            mismatches=tuple(self._mismatches),
            notes=tuple(self._notes(told)),
        )

    def other_beginnings(self) -> list[int]:
        """Of a file that begins in the middle: more and more of it is left out."""
        return [self._quiet[n] for n in (1, 2, 4, 8, 16, 32, 64) if n < len(self._quiet) // 2]

    def _head(self, text: str) -> dict[str, Any]:
        with contextlib.suppress(ValueError):
            told = json.loads(text)
            if isinstance(told, dict):
                return told
        raise CaptureError(self._path, None, "has options that are no JSON object")

    def _in_order(self, reader: CaptureReader) -> Iterator[tuple[int, _Step]]:
        """Frames and marks by seq. They lie in the file as their verdicts came; what is early waits in memory."""
        waiting: list[tuple[int, int, _Step]] = []
        expected: int | None = 1
        for n, frame in enumerate(reader):
            if self._progress is not None and n % 2048 == 0:
                self._progress(reader.position, reader.size)
            words = _words(frame)
            self._lost += self._integer(frame, words, "lost", 0)
            if words.get("verdict") == "dropped":
                self._unfed += 1
            if "seq" not in words or words.get("verdict") == "dropped":
                continue
            seq = self._integer(frame, words, "seq", 0)
            if not seq:  # the file begins in the middle: its first number isn't known before its end
                self._mid, expected = True, None
                yield seq, _Step(frame, words)
                continue
            heapq.heappush(waiting, (seq, frame.number, _Step(frame, words)))
            while expected is not None and waiting and waiting[0][0] <= expected:
                seq, _, step = heapq.heappop(waiting)
                expected = max(expected, seq + 1)
                yield seq, step
        previous = 0 if expected is None else expected - 1
        if self._mid:
            self._quiet = _quiet(waiting, lossless=not self._lost)
            if self._begin is None:
                self._begin = next(iter(self._quiet), None)
        while waiting:
            seq, _, step = heapq.heappop(waiting)
            if self._begin is not None and seq < self._begin and "mark" not in step.words:
                self._early += 1
                continue
            self._gaps = self._gaps or (previous != 0 and seq != previous + 1)
            previous = seq
            yield seq, step

    def _integer(self, frame: CapturedFrame, words: dict[str, str], name: str, default: int) -> int:
        try:
            return int(words.get(name, default))
        except ValueError as error:
            raise CaptureError(self._path, frame.number, f"its {name}={words[name]} is no number") from error

    def _feed(self, seq: int, step: _Step) -> None:
        frame, words = step.frame, step.words
        if "mark" in words:
            self._mark(step)
        else:
            side = _SIDES.get(frame.interface_name or "")
            if side is None or "verdict" not in words:
                raise CaptureError(self._path, frame.number, "is no packet of a recording")
            try:
                vnet = bytes.fromhex(words.get("vnet", ""))
            except ValueError as error:
                raise CaptureError(self._path, frame.number, f"its vnet={words['vnet']} is no hex") from error
            nic = self._integer(frame, words, "nic", 0)
            if not 0 <= nic <= 255:
                raise CaptureError(self._path, frame.number, f"its nic={nic} is none of 0 to 255")
            self._fed[self._count] = (step, seq)
            if self._comparator.feed(side, [Frame(vnet + frame.data, len(vnet), nic)], frame.time):
                self._count += 1
            else:
                del self._fed[self._count]
                self._judge(step, seq, "refused")
        self._comparator.events()
        for action in self._comparator.actions():
            match action:
                case Released():
                    self._judge(*self._fed.pop(action.frame), f"released {action.reason}")
                case Discarded():
                    self._judge(*self._fed.pop(action.frame), f"discarded {action.reason}")

    def _mark(self, step: _Step) -> None:
        self._marks += 1
        now = step.frame.time
        match step.words["mark"]:
            case "stop":
                self._comparator.stop(now)
            case "commit":
                self._comparator.commit(self._integer(step.frame, step.words, "resumed", now), now)
            case "abort":
                self._comparator.abort(now)
            case "alone":
                self._comparator.alone(now)
            case "tick":
                self._comparator.tick(now)
            case "mode":
                mode = step.words.get("mode", "alone")
                if mode != "alone":
                    self._comparator.commit(now, now)
                if mode == "stopped":
                    self._comparator.stop(now)
            case other:
                raise CaptureError(self._path, step.frame.number, f"its mark={other} is not known here")

    def _judge(self, step: _Step, seq: int, replayed: str) -> None:
        recorded = f"{step.words['verdict']} {step.words.get('reason', '')}".strip()
        if recorded == replayed:
            self._same += 1
            return
        self._different += 1
        if len(self._mismatches) < MAX_MISMATCHES:
            side = _SIDES[step.frame.interface_name or ""]
            self._mismatches.append(Mismatch(step.frame.number, seq, side, recorded, replayed))

    def _notes(self, told: dict[str, Any]) -> list[str]:
        notes = []
        if self._mid:
            notes.append("the file begins in the middle of a recording: what was held then is not in it")
        if self._early:
            notes.append(f"its first {self._early} frames are not fed: before them something was held")
        if self._gaps or self._lost:
            notes.append("frames are missing in the recording: verdicts behind them may differ")
        if told.get("rules", ()) is None:
            notes.append("the rules were too long to be recorded: verdicts that rest on them differ")
        return notes


def _quiet(steps: list[tuple[int, int, _Step]], *, lossless: bool) -> list[int]:
    """Each seq before which nothing is held: there a comparator that knows nothing can begin.

    Streams met at any other place would begin at different bytes. Verdicts lie in the file as they came. A number that
    isn't in it had its verdict before the file begins, or in the next one: whichever is nearer. If some were lost that
    can't be told, and they count as of the next one.

    Args:
        steps: seq, number of the packet, frame or mark; in any order.
        lossless: nothing between the file's first and last packet is missing.
    """
    marks = {seq for seq, _, step in steps if "mark" in step.words}
    numbers = {seq: number for seq, number, _ in steps if seq not in marks}
    if not numbers:
        return []
    first, last = min(numbers), max(numbers)
    absent = {seq for seq in range(first, last) if seq not in numbers and seq not in marks}
    seqs = sorted(numbers.keys() | absent)
    verdicts = [numbers.get(seq, 0 if lossless and seq - first < last - seq else sys.maxsize) for seq in seqs]
    earliest = list(itertools.accumulate(reversed(verdicts), min))[::-1]  # verdict from there on
    latest = itertools.chain((0,), itertools.accumulate(verdicts, max))  # before
    return [seq for seq, after, before in zip(seqs, earliest, latest, strict=False) if after > before]


def _options(told: dict[str, Any]) -> ComparatorOptions:
    options: dict[str, Any] = {name: told[name] for name in _NUMBERS if name in told}
    if "pass_classes" in told:
        names = {str(member): member for member in FrameClass}
        options["pass_classes"] = [names[name] for name in told["pass_classes"]]
    options["keep_gap"] = bool(told.get("keep_gap", False))
    options["any_scale"] = bool(told.get("any_scale", False))  # not in files of before it was an option
    if told.get("rules"):
        options["rules"] = rules.rules_from_document(told["rules"])
    return cast(ComparatorOptions, options)


def _words(frame: CapturedFrame) -> dict[str, str]:
    for comment in frame.comments:
        first, *rest = comment.split()
        if first == "coloproxy":
            return {name: value for name, _, value in (word.partition("=") for word in rest)}
    return {}
