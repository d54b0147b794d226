"""What Linux knows about a process: processor time, memory, wake-ups. Reads only."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

TICKS = os.sysconf("SC_CLK_TCK")
CPUCLOCK_SCHED = 2  # with the complemented pid, a process's clock: clock_getcpuclockid(3)


@dataclass(frozen=True)
class Memory:
    """Memory in MiB: *resident* counts shared pages in full, *proportional* by share (PSS)."""

    resident: float
    proportional: float


def tree(pid: int) -> list[int]:
    """*pid* and every living descendant of it."""
    children: dict[int, list[int]] = {}
    for child, fields in _stats():
        children.setdefault(int(fields[1]), []).append(child)
    found = [pid]
    for parent in found:  # grows while it is walked
        found.extend(children.get(parent, ()))
    return found


def own_time(pid: int) -> float:
    """Seconds of processor time of *pid* itself, user and system, all threads.

    By the process's clock, not by `/proc/PID/stat`, which counts in hundredths.
    """
    return time.clock_gettime((~pid << 3) | CPUCLOCK_SCHED)


def tree_time(pid: int) -> float:
    """Seconds of processor time of *pid*, its descendants, and those they have waited for."""
    total = 0.0
    for member in tree(pid):
        try:
            fields = _fields(Path(f"/proc/{member}/stat").read_text())
            total += own_time(member) + (int(fields[13]) + int(fields[14])) / TICKS
        except OSError:  # it ended meanwhile; its parent's figure has it the next time
            continue
    return total


def memory(pid: int) -> Memory:
    """Memory of *pid* alone, by `status` and `smaps_rollup`."""
    resident = _field(Path(f"/proc/{pid}/status"), "VmRSS")
    proportional = _field(Path(f"/proc/{pid}/smaps_rollup"), "Pss")
    return Memory(resident / 1024, proportional / 1024)


def tree_memory(pid: int) -> float:
    """Proportional memory in MiB of *pid* and every descendant."""
    return sum(memory(member).proportional for member in tree(pid))


def wakeups(pid: int) -> int:
    """How often the threads of *pid* and its descendants have gone to sleep of their own accord.

    Each such switch is followed by one wake-up, so the difference of two readings counts these.
    """
    total = 0
    for member in tree(pid):
        for thread in Path(f"/proc/{member}/task").iterdir():
            total += _field(thread / "status", "voluntary_ctxt_switches")
    return total


def threads(pid: int) -> int:
    """Threads of *pid* alone."""
    return _field(Path(f"/proc/{pid}/status"), "Threads")


def _stats() -> Iterator[tuple[int, list[str]]]:
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                yield int(entry.name), _fields((entry / "stat").read_text())
            except OSError:
                continue


def _fields(stat: str) -> list[str]:
    # From the state on: the name before it is in parentheses and may hold anything.
    return stat.rpartition(")")[2].split()


def _field(path: Path, name: str) -> int:
    for line in path.read_text().splitlines():
        key, _, value = line.partition(":")
        if key == name:
            return int(value.split()[0])
    raise ValueError(f"{path}: no field {name}")
