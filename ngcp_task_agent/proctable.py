"""
The process table, as proc(5) shows it. Only looks, never touches.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import NamedTuple

FRESH = 0.01  # seconds that a look serves at least


class Process(NamedTuple):
    """One line of the process table; `started` in clock ticks since boot."""

    pid: int
    state: str
    parent: int
    group: int
    session: int
    started: int


def read_table() -> Iterator[Process]:
    """Every process there is; see proc_pid_stat(5)."""
    for name in os.listdir("/proc"):
        if name.isdecimal():
            with suppress(OSError, ValueError, IndexError):
                yield read_process(int(name))


def read_process(pid: int) -> Process:
    """One process.

    Raises:
        OSError: There is none.
    """
    with open(f"/proc/{pid}/stat", "rb") as file:
        # The second field is the name in parentheses, with any bytes in it.
        fields = file.read().rpartition(b")")[2].split()
    parent, group, session = map(int, fields[1:4])
    return Process(pid, fields[0].decode(), parent, group, session, int(fields[19]))


def children_of(pid: int) -> list[int]:
    """Who has been started by its first thread, or come to it as an orphan.

    Raises:
        OSError: There is no such process, or the kernel lacks CONFIG_PROC_CHILDREN.
    """
    # Asked after each program, so without Python's file objects.
    fd = os.open(f"/proc/{pid}/task/{pid}/children", os.O_RDONLY | os.O_CLOEXEC)
    try:
        data = b""
        while piece := os.read(fd, 65536):  # the kernel gives a page at a time
            data += piece
        return [int(child) for child in data.split()]
    finally:
        os.close(fd)


class Look:
    """A look at all processes that serves for a moment, however many ask.

    Attributes:
        number: Which look it is; another one has another number.
        table: Every process, by pid.
        children: The processes of each parent.
    """

    def __init__(self) -> None:
        self.number = 0
        self.table: dict[int, Process] = {}
        self.children: dict[int, list[Process]] = {}
        self._stale_at = 0.0  # monotonic seconds
        self._variables: dict[tuple[int, int, str], str] = {}

    def refresh(self) -> None:
        """Look again unless the last look was a moment ago.

        With many processes a look takes long, and serves longer: looking takes a fifth
        of the time at most.
        """
        began = time.monotonic()
        if began < self._stale_at:
            return
        self.number += 1
        self.table, self.children, self._variables = {}, {}, {}
        for process in read_table():
            self.table[process.pid] = process
            self.children.setdefault(process.parent, []).append(process)
        now = time.monotonic()
        self._stale_at = now + max(FRESH, 4 * (now - began))

    def variable_of(self, process: Process, name: str) -> str:
        """See `variable_of`; read once in a look."""
        if not self._is_fresh():
            return variable_of(process.pid, name)
        key = (process.pid, process.started, name)
        if key not in self._variables:
            self._variables[key] = variable_of(process.pid, name)
        return self._variables[key]

    def _is_fresh(self) -> bool:
        return time.monotonic() < self._stale_at


def user_of(pid: int) -> int:
    """The number of the user it runs as; 0 as well if there is no telling."""
    with suppress(OSError):
        return os.stat(f"/proc/{pid}").st_uid
    return 0


def peak_memory_of(pid: int) -> int:
    """The most resident bytes it has had since its exec; 0 if there is no telling."""
    with suppress(OSError, ValueError, IndexError), open(f"/proc/{pid}/status", "rb") as file:
        return int(file.read().partition(b"VmHWM:")[2].split(maxsplit=1)[0]) * 1024
    return 0


def variable_of(pid: int, name: str) -> str:
    """A variable of its environment at its start; empty if there is none, or no telling."""
    with suppress(OSError), open(f"/proc/{pid}/environ", "rb") as file:
        for entry in file.read().split(b"\0"):
            key, _, value = entry.partition(b"=")
            if key == name.encode():
                return value.decode("ascii", "replace")
    return ""


def open_files_of(pid: int) -> set[int]:
    """The inodes of its open files."""
    found = set()
    with suppress(OSError):
        for name in os.listdir(f"/proc/{pid}/fd"):
            with suppress(OSError):
                found.add(os.stat(f"/proc/{pid}/fd/{name}").st_ino)
    return found
