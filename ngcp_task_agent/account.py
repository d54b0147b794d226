"""
What a program has used, and whether a limit has ended it.
"""

from __future__ import annotations

import resource
import signal
from typing import NamedTuple

from .cgroups import Group
from .confinement import Confinement, size_text


class Account(NamedTuple):
    """The bill.

    Attributes:
        cpu_seconds: Processor time of the program and its children.
        peak_memory: The most bytes it has had; None if nobody knows.
        limit_hit: Which limit has ended it, for people; empty if none.
    """

    cpu_seconds: float | None = None
    peak_memory: int | None = None
    limit_hit: str = ""


def draw_up(
    usage: resource.struct_rusage,
    code: int,
    resident: int,
    group: Group | None,
    confinement: Confinement,
) -> Account:
    """Add up what the kernel tells at a program's end.

    Args:
        usage: From wait4(2).
        code: Exit code, or minus the number of the signal that ended it.
        resident: The most bytes it was seen with; 0 if nobody has looked.
        group: Its control group.
        confinement: Its bounds.
    """
    cpu_seconds = usage.ru_utime + usage.ru_stime
    # After vfork and exec the kernel counts the peak of the starting process, this
    # one, as the program's. So the figure says something only if it is higher.
    peak = usage.ru_maxrss * 1024
    if usage.ru_maxrss <= resource.getrusage(resource.RUSAGE_SELF).ru_maxrss:
        peak = resident
    if group is None:
        return Account(cpu_seconds, peak or None, _limit_hit(code, {}, confinement))
    return Account(
        max(cpu_seconds, group.cpu_seconds()),
        group.peak_memory() or peak or None,
        _limit_hit(code, group.memory_events() if code else {}, confinement),
    )


def _limit_hit(code: int, events: dict[str, int], confinement: Confinement) -> str:
    if events.get("oom_kill"):
        if confinement.memory and events.get("oom"):
            return f"out of memory: more than {size_text(confinement.memory)} (limits.memory)"
        return "out of memory"  # the machine's, or that of the service
    if code == -signal.SIGXFSZ and confinement.file_size:
        return f"a file of more than {size_text(confinement.file_size)} (limits.file_size)"
    return ""
