"""
Children that nobody else waits for.

The daemon adopts what its programs leave behind; what ends by itself is reaped here.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress

from .proctable import children_of, read_process, read_table

SWEEP_EVERY = 0.5  # seconds between two looks for zombies while anything runs
ZOMBIES_AFTER = 0.4  # seconds until an adopted one is reaped
STRANGERS_AFTER = 60.0  # seconds a plug-in has to wait for a child that it has started


class Reaper:
    """Reaps adopted children that end by themselves, many at a time.

    Not by SIGCHLD: uvloop takes that for its own subprocesses and gives it back to nobody.

    Args:
        loop: Where the time passes.
        running: Pids that have somebody who waits for them; looked at each time.
        look: Called at each sweep, too.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, running: Collection[int], look: Callable[[], None]
    ) -> None:
        self._loop = loop
        self._running = running
        self._look = look
        self._armed = False
        self._seen: dict[tuple[int, int], float] = {}  # strangers' zombies: since when

    def sweep_soon(self) -> None:
        """Look in a while, and as long as anything runs."""
        if not self._armed:
            self._armed = True
            self._loop.call_later(SWEEP_EVERY, self._sweep)

    def _sweep(self) -> None:
        self._armed = False
        self._look()
        left = strays(self._running)
        if left:
            self._reap(left)
        if left or self._running:
            self.sweep_soon()

    def _reap(self, left: Sequence[int]) -> None:
        """Reap zombies that nobody else has reaped, after a while.

        Those of our own session may be a plug-in's, which may still wait for them. So
        may others, if it has given them a session, but then its event loop is quick.
        """
        now, own, seen = self._loop.time(), os.getsid(0), self._seen
        self._seen = {}
        for pid in left:
            with suppress(OSError):
                process = read_process(pid)
                since = seen.get((pid, process.started), now)
                patience = STRANGERS_AFTER if process.session == own else ZOMBIES_AFTER
                if process.state != "Z":
                    continue
                if now - since < patience:
                    self._seen[pid, process.started] = since
                else:
                    os.waitpid(pid, os.WNOHANG)


def strays(running: Collection[int]) -> list[int]:
    """The daemon's children that are not among *running*."""
    pid = os.getpid()
    try:
        # Those of the first thread: the kernel gives orphans to it. What other threads
        # have started is among *running*.
        children = children_of(pid)
    except OSError:  # a kernel without CONFIG_PROC_CHILDREN
        return [p.pid for p in read_table() if p.parent == pid and p.pid not in running]
    return [child for child in children if child not in running]
