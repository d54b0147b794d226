"""What machine this is, and whether somebody else was using it."""

from __future__ import annotations

import os
import platform
import resource
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from types import TracebackType
from typing import Self

TICKS = os.sysconf("SC_CLK_TCK")
CPUS = os.cpu_count() or 1


@dataclass(frozen=True)
class Load:
    """How the machine was used over a stretch of time, each a share of all its processors.

    Attributes:
        wall: Seconds.
        own: By the benchmark and every process that it started and waited for.
        others: By everything else.
        stolen: Wanted here and given to somebody else by the hypervisor.
    """

    wall: float
    own: float
    others: float
    stolen: float


class Watch:
    """Takes the `Load` of its ``with`` block; children that are still alive count as others."""

    load: Load

    def __enter__(self) -> Self:
        self._began = time.monotonic(), _own_seconds(), *_machine_seconds()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        ended = time.monotonic(), _own_seconds(), *_machine_seconds()
        wall, own, busy, stolen = (
            after - before for after, before in zip(ended, self._began, strict=True)
        )
        capacity = max(wall, 1 / TICKS) * CPUS
        others = max(0.0, busy - own)  # ticks are coarse: a little below zero is zero
        self.load = Load(wall, own / capacity, others / capacity, stolen / capacity)


def describe() -> dict[str, str | int]:
    """The machine in a few words, for the head of a report."""
    return {
        "processor": _model(),
        "processors": CPUS,
        "memory_mib": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2**20,
        "kernel": platform.release(),
        "python": platform.python_version(),
        **{name: version(name) for name in ("redis", "hiredis", "uvloop")},
    }


def _machine_seconds() -> tuple[float, float]:
    """Seconds that all processors were busy, and that were stolen, since boot: proc(5)."""
    first = Path("/proc/stat").read_text().splitlines()[0]
    user, nice, system, _idle, _iowait, irq, softirq, stolen = map(int, first.split()[1:9])
    return (user + nice + system + irq + softirq) / TICKS, stolen / TICKS


def _own_seconds() -> float:
    total = 0.0
    for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN):
        used = resource.getrusage(who)
        total += used.ru_utime + used.ru_stime
    return total


def _model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith(("model name", "Model")):
            return line.partition(":")[2].strip()
    return platform.machine()
