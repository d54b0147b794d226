"""
What running processes use, for `agent.jobs`. psutil is loaded when somebody asks.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import NamedTuple

from .proctable import peak_memory_of, read_table


class Usage(NamedTuple):
    """What a process and all that descends from it use.

    Attributes:
        cpu_seconds: Processor time so far, that of children that have ended included.
        memory: Resident bytes now.
        peak_memory: The highest that each of them has had, added up.
    """

    cpu_seconds: float
    memory: int
    peak_memory: int


def measure(pids: Iterable[int]) -> Mapping[int, Usage]:
    """Look at the trees of *pids*, in one walk over all processes.

    Those that are gone are left out. It takes some milliseconds: not for the event loop.
    """
    wanted = set(pids)
    members: dict[int, list[int]] = {}
    for process in read_table() if wanted else ():
        for key in {process.parent, process.session}:
            members.setdefault(key, []).append(process.pid)
    found = {}
    for pid in wanted:
        usages = list(_usages(_tree(pid, members)))
        if usages:
            cpu, memory, peak = zip(*usages, strict=True)
            found[pid] = Usage(round(sum(cpu), 3), sum(memory), sum(peak))
    return found


def _tree(pid: int, members: Mapping[int, Sequence[int]]) -> set[int]:
    found: set[int] = set()
    waiting = [pid]
    while waiting:
        pid = waiting.pop()
        if pid not in found:
            found.add(pid)
            waiting += members.get(pid, ())
    return found


def _usages(pids: Iterable[int]) -> Iterator[Usage]:
    import psutil  # 3 MiB and 30 ms that a daemon whom nobody asks need not spend

    for pid in pids:
        with suppress(psutil.Error):
            process = psutil.Process(pid)
            with process.oneshot():
                times, memory = process.cpu_times(), process.memory_info().rss
            yield Usage(sum(times[:4]), memory, peak_memory_of(pid))
