# SPDX-License-Identifier: Apache-2.0
"""CPU time of processes, from /proc/PID/stat (proc(5))."""

from __future__ import annotations

import os
import resource
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from coloproxy.errors import MisuseError

_TICK: Final = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class CpuTime:
    """Seconds; of a process with all its threads."""

    user: float = 0.0
    system: float = 0.0

    @property
    def total(self) -> float:
        return self.user + self.system

    def __sub__(self, other: CpuTime) -> CpuTime:
        return CpuTime(self.user - other.user, self.system - other.system)


def cpu_of(pid: int) -> CpuTime:
    """So far. Raises MisuseError: there is no such process."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError as error:
        raise MisuseError(f"process {pid}: {error.strerror}") from error
    words = text.rpartition(")")[2].split()  # the name before it may hold anything
    return CpuTime(int(words[11]) / _TICK, int(words[12]) / _TICK)


def own_cpu() -> CpuTime:
    """Of this process, so far."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return CpuTime(usage.ru_utime, usage.ru_stime)
