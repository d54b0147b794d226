"""
A control group for each program, where the service manager has delegated its own.

A process can leave its session, its parent and its environment behind, but not its
group (cgroups(7), version 2). Without delegation (`Delegate=yes` in the unit) there
are no groups, and process trees are told by the other marks.
"""

from __future__ import annotations

import os
from contextlib import suppress

_MARKS = ("user.delegate", "trusted.delegate")  # extended attributes, set by systemd
_PREFIX = "job-"


def delegated() -> str:
    """The directory in which this process may make groups; empty if there is none.

    Groups that an earlier process has left empty are removed.
    """
    directory = _own_group()
    if not directory or not _is_delegated(directory):
        return ""
    for name in os.listdir(directory):
        if name.startswith(_PREFIX):
            with suppress(OSError):
                os.rmdir(os.path.join(directory, name))
    return directory


class Group:
    """The processes of one program.

    Args:
        directory: See `delegated`.
        name: Unique in there.

    Raises:
        OSError: It cannot be made.
    """

    def __init__(self, directory: str, name: str) -> None:
        self._path = os.path.join(directory, _PREFIX + name)
        os.mkdir(self._path)

    def add(self, pid: int) -> None:
        """Move a process in, with all that it will start; one that is gone is no error.

        What it has started before this stays outside.
        """
        with suppress(OSError):
            self._write("cgroup.procs", str(pid))

    def pids(self) -> set[int]:
        """Who is in it, groups inside it included."""
        found: set[int] = set()
        for place, _, _ in os.walk(self._path):
            with suppress(OSError), open(os.path.join(place, "cgroup.procs"), "rb") as file:
                found.update(map(int, file.read().split()))
        return found

    def kill(self) -> None:
        """SIGKILL to everybody in it at once (Linux 5.14; older kernels: nothing)."""
        with suppress(OSError):
            self._write("cgroup.kill", "1")

    def remove(self) -> bool:
        """Remove it; False while somebody is in it."""
        try:
            os.rmdir(self._path)
        except FileNotFoundError:
            return True
        except OSError:
            return self._remove_inner()
        return True

    def _remove_inner(self) -> bool:
        """Remove it where programs have made groups of their own in it."""
        try:
            for place, _, _ in os.walk(self._path, topdown=False):
                os.rmdir(place)
        except OSError:
            return False
        return True

    def _write(self, name: str, text: str) -> None:
        fd = os.open(os.path.join(self._path, name), os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, text.encode())
        finally:
            os.close(fd)


def _own_group() -> str:
    with suppress(OSError), open("/proc/self/cgroup") as file:
        for line in file:
            number, _, path = line.rstrip("\n").split(":", 2)
            mount = _mount_point() if number == "0" else ""
            if mount:
                return mount + path.rstrip("/")
    return ""


def _mount_point() -> str:
    with open("/proc/self/mountinfo") as file:
        for line in file:
            fields = line.split()
            if fields[fields.index("-") + 1] == "cgroup2":
                return fields[4]
    return ""


def _is_delegated(directory: str) -> bool:
    for mark in _MARKS:
        with suppress(OSError):
            if os.getxattr(directory, mark) == b"1":
                return True
    return False
