"""The processor time and memory that a process and its children have used."""

from __future__ import annotations

import os
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


def tree(pid: int) -> list[int]:
    """The process and all that descend from it."""
    found = [pid]
    for each in found:
        for task in Path(f"/proc/{each}/task").iterdir():
            found.extend(map(int, (task / "children").read_text().split()))
    return found


def cpu_seconds(pid: int) -> float:
    """Processor time, user's and system's, of the process and its children so far.

    Its resolution is a nanosecond, where /proc/PID/stat counts hundredths of a second.
    """
    # what clock_getcpuclockid(3) returns for a process on Linux
    return sum(time.clock_gettime_ns(~each << 3 | 2) for each in tree(pid)) / 1e9


def _memory(pid: int, file: str, field: str) -> int:
    for line in Path(f"/proc/{pid}/{file}").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise LookupError(f"/proc/{pid}/{file} has no {field}")


def resident(pid: int) -> int:
    """Bytes of memory in which the process and its children reside (Rss)."""
    return sum(_memory(each, "smaps_rollup", "Rss") for each in tree(pid))


def own(pid: int) -> int:
    """As `resident`, but no files, which other processes may share (Pss_Anon)."""
    return sum(_memory(each, "smaps_rollup", "Pss_Anon") for each in tree(pid))


def reset_peak(pid: int) -> None:
    """Has `peak` count from now on."""
    for each in tree(pid):
        Path(f"/proc/{each}/clear_refs").write_text("5")


def peak(pid: int) -> int:
    """The most bytes in which each of the processes resided, added up (VmHWM)."""
    return sum(_memory(each, "status", "VmHWM") for each in tree(pid))


@contextmanager
def pinned(cpus: set[int]) -> Iterator[None]:
    """Processes started within this run on `cpus` only."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cpus)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
