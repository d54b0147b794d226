"""
Tells when files in a few directories change, by inotify(7), without polling.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import struct
from collections.abc import Callable, Iterable, Iterator

SETTLE = 0.2  # seconds without a further change until the change is told
AT_MOST = 1.0  # seconds a stream of changes can put that off
_CLOSE_WRITE, _ATTRIB, _MOVED, _CREATE, _DELETE, _SELF = 0x8, 0x4, 0xC0, 0x100, 0x200, 0xC00
_MASK = _CLOSE_WRITE | _ATTRIB | _MOVED | _CREATE | _DELETE | _SELF
_IS_DIRECTORY = 0x40000000
_EVENT = struct.Struct("iIII")  # watch, mask, cookie, length of the name that follows
_NONBLOCK_CLOEXEC = os.O_NONBLOCK | os.O_CLOEXEC


class Watch:
    """Calls back once after each burst of changes.

    Args:
        changed: Called in the event loop; it looks at all files, whichever it was.
        concerns: Whether a change of a file of this name matters; empty for a
            change of a directory itself.

    Raises:
        OSError: The kernel has no inotify, or too many are in use.
    """

    def __init__(self, changed: Callable[[], None], concerns: Callable[[str], bool]) -> None:
        self._loop = asyncio.get_running_loop()
        self._changed = changed
        self._concerns = concerns
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._fd = self._libc.inotify_init1(_NONBLOCK_CLOEXEC)
        if self._fd < 0:
            raise OSError(ctypes.get_errno(), "inotify is not to be had")
        self._timer: asyncio.TimerHandle | None = None
        self._since = 0.0
        self._loop.add_reader(self._fd, self._on_event)

    def add(self, directories: Iterable[str]) -> None:
        """Watch these, too; those that do not exist are passed over. Repeats do no harm."""
        for directory in directories:
            self._libc.inotify_add_watch(self._fd, os.fsencode(directory), _MASK)

    def close(self) -> None:
        """Watch no more."""
        if self._fd >= 0:
            self._loop.remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1
        if self._timer is not None:
            self._timer.cancel()

    def _on_event(self) -> None:
        if not any(map(self._concerns, _names(os.read(self._fd, 64 * 1024)))):
            return
        now = self._loop.time()
        if self._timer is None:
            self._since = now
        else:
            self._timer.cancel()
        self._timer = self._loop.call_at(min(now + SETTLE, self._since + AT_MOST), self._tell)

    def _tell(self) -> None:
        self._timer = None
        self._changed()


def _names(events: bytes) -> Iterator[str]:
    start = 0
    while start < len(events):
        _, mask, _, length = _EVENT.unpack_from(events, start)
        start += _EVENT.size
        name = events[start : start + length].rstrip(b"\0")
        start += length
        yield "" if mask & _IS_DIRECTORY else os.fsdecode(name)
