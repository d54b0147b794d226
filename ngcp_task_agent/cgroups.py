"""
A control group for each program, where the service manager has delegated its own.

A process can leave its session, its parent and its environment behind, but not its
group (cgroups(7), version 2). Without delegation (`Delegate=yes` in the unit) there
are no groups, and process trees are told by the other marks.

A group may have processes or limited groups inside it, not both. So the daemon, which
is started in the delegated group, moves into a group `agent` beside those of its programs.
"""

from __future__ import annotations

import logging
import os
from contextlib import suppress
from typing import NamedTuple

CONTROLLERS = frozenset({"memory", "pids", "cpu"})  # what limits are made of
_SERVICE = "/system.slice/ngcp-task-agent.service"
_MARKS = ("user.delegate", "trusted.delegate")  # extended attributes, set by systemd
_PREFIX = "job-"
_OWN = "agent"
_PERIOD = 100_000  # microseconds in which a group has its share of the processors

log = logging.getLogger(__name__)


class Delegation(NamedTuple):
    """What has been delegated to this process.

    Attributes:
        directory: Where it may make groups; empty if nowhere.
        controllers: Those of `CONTROLLERS` that limit the groups made there.
    """

    directory: str = ""
    controllers: frozenset[str] = frozenset()


def available() -> frozenset[str]:
    """The controllers the agent has or would have here; only looks.

    Whoever asks from a shell (``check``) is not in the service's group: then that of
    the running service counts.
    """
    directory = _delegated()
    if not directory:
        service = _mount_point() + _SERVICE
        directory = service if _is_delegated(service) else ""
    return _listed(directory, "cgroup.controllers") if directory else frozenset()


def take_over() -> Delegation:
    """Prepare the delegated group, if there is one, for groups of programs.

    Groups that an earlier process has left empty are removed.
    """
    directory = _delegated()
    if not directory:
        return Delegation()
    for name in os.listdir(directory):
        if name.startswith(_PREFIX):
            with suppress(OSError):
                os.rmdir(os.path.join(directory, name))
    try:
        return Delegation(directory, _enable(directory))
    except OSError as exc:
        log.warning("no limits by control groups: %s: %s", directory, exc.strerror)
        return Delegation(directory)


def _enable(directory: str) -> frozenset[str]:
    wanted = _listed(directory, "cgroup.controllers")
    if not wanted:
        return wanted
    own = os.path.join(directory, _OWN)
    os.makedirs(own, exist_ok=True)
    with open(os.path.join(directory, "cgroup.procs")) as file:
        for pid in file.read().split():
            _write(own, "cgroup.procs", pid)
    for controller in wanted:
        # One by one: one that is refused does not take the others with it.
        with suppress(OSError):
            _write(directory, "cgroup.subtree_control", f"+{controller}")
    return _listed(directory, "cgroup.subtree_control")


class Group:
    """The processes of one program.

    Args:
        directory: See `Delegation`.
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

        Raises:
            OSError: It cannot be moved.
        """
        with suppress(ProcessLookupError):
            _write(self._path, "cgroup.procs", str(pid))

    def limit(self, *, memory: int = 0, pids: int = 0, cpu: float = 0) -> None:
        """Hold all of it together within limits; 0 is none. Before anybody is added.

        Args:
            memory: Bytes, swap included; beyond, the whole group is killed.
            pids: Processes and threads.
            cpu: Processors, for example 0.5.

        Raises:
            OSError: A limit cannot be set.
        """
        if memory:
            _write(self._path, "memory.max", str(memory))
            _write(self._path, "memory.oom.group", "1")
            with suppress(FileNotFoundError):  # a kernel that does not count swap
                _write(self._path, "memory.swap.max", "0")
        if pids:
            _write(self._path, "pids.max", str(pids))
        if cpu:
            _write(self._path, "cpu.max", f"{round(cpu * _PERIOD)} {_PERIOD}")

    def memory_events(self) -> dict[str, int]:
        """What has happened here for lack of memory: ``oom`` (its own limit was
        reached), ``oom_kill`` (processes killed, for whatever limit) and others."""
        return self._numbers("memory.events")

    def peak_memory(self) -> int | None:
        """The most bytes it has had, files in memory included (Linux 5.19)."""
        with suppress(OSError, ValueError):
            return int(_read(self._path, "memory.peak"))
        return None

    def cpu_seconds(self) -> float:
        """Processor time that all of it has used."""
        return self._numbers("cpu.stat").get("usage_usec", 0) / 1e6

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
            _write(self._path, "cgroup.kill", "1")

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

    def _numbers(self, name: str) -> dict[str, int]:
        with suppress(OSError, ValueError):
            lines = [line.split() for line in _read(self._path, name).splitlines()]
            return {key: int(value) for key, value in lines}
        return {}


def _write(directory: str, name: str, text: str) -> None:
    fd = os.open(os.path.join(directory, name), os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)


def _read(directory: str, name: str) -> str:
    with open(os.path.join(directory, name)) as file:
        return file.read()


def _listed(directory: str, name: str) -> frozenset[str]:
    """Which of `CONTROLLERS` a file names."""
    with suppress(OSError):
        return CONTROLLERS & set(_read(directory, name).split())
    return frozenset()


def _delegated() -> str:
    """The directory of the delegated group: the own one, or the one around it, where
    the service manager (`DelegateSubgroup=`) or an earlier `take_over` has moved us."""
    own = _own_group()
    for directory in (own, os.path.dirname(own)):
        if directory and _is_delegated(directory):
            return directory
    return ""


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
