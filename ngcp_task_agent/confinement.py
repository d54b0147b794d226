"""
Within what bounds a program runs, as an administrator writes them down.

``limits``, ``private_tmp``, ``no_new_privileges`` and ``read_only_paths`` mean the same for
every broker that starts programs. What the kernel does not hold here, or holds only in
part, becomes a warning when the file is read. Starts nothing itself.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Collection
from dataclasses import dataclass

from . import cgroups
from .errors import BrokerError
from .options import Options, describe

TMP_SIZE = 256 * 1024 * 1024  # bytes of a private /tmp
LEAST_MEMORY = 1024 * 1024  # bytes; with less no program gets as far as its first line
LEAST_FILES = 8  # descriptors; the dynamic loader needs some
MOST_PROCESSORS = 1024
_CLASSES = {"realtime": "1", "best-effort": "2", "idle": "3"}  # of ionice(1)
_PRIORITY = re.compile(r"idle|(?:best-effort|realtime)(?:/[0-7])?")
_SHARE = re.compile(r"(\d+(?:\.\d+)?)\s*(%?)")
_DELEGATE = "the service running with Delegate=yes, on a kernel with control groups of version 2"


@dataclass(frozen=True, slots=True)
class Confinement:
    """The bounds of one program and all that descends from it. 0 and "" are no bound.

    Attributes:
        memory: Bytes.
        pids: Processes and threads.
        cpu: Processors, for example 0.5.
        open_files: Descriptors of each process.
        file_size: Bytes of each file that is written.
        nice: From -20 (first) to 19 (last); None for the daemon's.
        io_priority: ``idle``, ``best-effort``, ``best-effort/7``, ``realtime/0`` …
        private_tmp: Bytes that /tmp and /var/tmp hold, empty at the start and gone at the end.
        no_new_privileges: Whether set-user-ID programs have no effect.
        read_only_paths: Absolute paths where, and below which, nothing can be written.
    """

    memory: int = 0
    pids: int = 0
    cpu: float = 0.0
    open_files: int = 0
    file_size: int = 0
    nice: int | None = None
    io_priority: str = ""
    private_tmp: int = 0
    no_new_privileges: bool = True
    read_only_paths: tuple[str, ...] = ()

    @property
    def has_prefix(self) -> bool:
        """Whether other programs may come before the program itself: then it has to be
        looked for by whoever starts it."""
        return bool(self.prefix(()))

    @property
    def own_thread(self) -> bool:
        """Whether it has to be started by a thread that has changed itself for it."""
        return bool(self.private_tmp or self.read_only_paths or self.nice is not None)

    def prefix(self, held: Collection[str]) -> list[str]:
        """The words to put before a program.

        Args:
            held: Controllers that limit the program's control group; what they hold
                needs no second limit, each process by itself.

        Raises:
            BrokerError: A tool is not installed.
        """
        limits = {
            "nofile": self.open_files,
            "fsize": self.file_size,
            "data": 0 if "memory" in held else self.memory,
            "nproc": 0 if "pids" in held else self.pids,
        }
        words = [f"--{name}={limit}" for name, limit in limits.items() if limit]
        if words:
            words = [_tool("prlimit"), *words, "--"]
        if self.io_priority:
            kind, _, level = self.io_priority.partition("/")
            words += [_tool("ionice"), "-c", _CLASSES[kind], *(["-n", level] if level else [])]
        return words


def read_confinement(options: Options) -> Confinement:
    """Read a broker's options that bound what it starts."""
    limits = options.section("limits")
    tmp = options.fields.get("private_tmp")
    if isinstance(tmp, bool) or tmp is None:
        private_tmp = TMP_SIZE if options.flag("private_tmp") else 0
    else:
        private_tmp = options.size("private_tmp", 0)
    found = Confinement(
        memory=limits.size("memory", 0, minimum=LEAST_MEMORY),
        pids=limits.integer("pids", 0, minimum=1),
        cpu=_processors(limits),
        open_files=limits.integer("open_files", 0, minimum=LEAST_FILES),
        file_size=limits.size("file_size", 0),
        nice=limits.integer("nice", 0, minimum=-20, maximum=19) if "nice" in limits else None,
        io_priority=_io_priority(limits),
        private_tmp=private_tmp,
        no_new_privileges=options.flag("no_new_privileges", True),
        read_only_paths=_paths(options),
    )
    limits.mark("nice")
    limits.close()
    try:
        found.prefix(())
    except BrokerError as exc:
        options.problem("limits", "what cannot be set", str(exc))
    _warn_of_limits(found, limits, "as_user" in options)
    _warn_of_mounts(found, options)
    return found


def size_text(size: int) -> str:
    """Bytes for people, exactly.

    >>> size_text(64 << 20), size_text(1500)
    ('64 MiB', '1500 bytes')
    """
    for unit, factor in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if size and size % factor == 0:
            return f"{size // factor} {unit}"
    return f"{size} bytes"


def _processors(limits: Options) -> float:
    limits.mark("cpu")
    value = limits.fields.get("cpu")
    if value is None:
        return 0.0
    match = _SHARE.fullmatch(str(value).strip()) if not isinstance(value, bool) else None
    share = float(match[1]) / (100 if match[2] else 1) if match else 0.0
    if not 0.01 <= share <= MOST_PROCESSORS:
        limits.problem("cpu", describe(value), "a share of one processor, or several: 50%, 0.5, 2")
        return 0.0
    return share


def _io_priority(limits: Options) -> str:
    value = limits.text("io_priority")
    if value and not _PRIORITY.fullmatch(value):
        limits.problem("io_priority", repr(value), "idle, best-effort/0 to /7, or realtime/0 to /7")
        return ""
    return value


def _paths(options: Options) -> tuple[str, ...]:
    paths = options.names("read_only_paths")
    for path in paths:
        if not os.path.isabs(path):
            options.problem("read_only_paths", repr(path), "absolute paths")
        elif not os.path.exists(path):
            options.note("read_only_paths", f"{path}, which is not there", "a path that is")
    return tuple(path for path in paths if os.path.isabs(path))


def _warn_of_limits(found: Confinement, limits: Options, switches: bool) -> None:
    """Note the limits which do not hold here, or not as they read."""
    held = cgroups.available() if found.memory or found.pids or found.cpu else frozenset()
    root = os.geteuid() == 0

    def note(key: str, trouble: str, expected: str = _DELEGATE) -> None:
        limits.note(key, f"{describe(limits.fields[key])}, which {trouble}", expected)

    if found.cpu and "cpu" not in held:
        note("cpu", "cannot hold here: no control group is delegated")
    if found.memory and "memory" not in held:
        note("memory", "holds for each process by itself: no control group is delegated")
    if found.pids and "pids" not in held:
        if root and not switches:
            note("pids", "is only looked after, ten times a second: no control group is delegated")
        else:
            note("pids", "holds for all processes of the user: no control group is delegated")
    if found.nice is not None and found.nice < 0 and not root:
        note("nice", "cannot hold here", "an agent that runs as root, or 0 and more")
    if found.io_priority.startswith("realtime") and not root:
        note("io_priority", "cannot hold here", "an agent that runs as root, or best-effort")


def _warn_of_mounts(found: Confinement, options: Options) -> None:
    if os.geteuid() != 0:
        for key in ("private_tmp", "read_only_paths"):
            if getattr(found, key):
                trouble = "what cannot hold here: the task will fail"
                options.note(key, trouble, "an agent that runs as root")


def _tool(name: str) -> str:
    path = shutil.which(name)
    if path is None:
        raise BrokerError(f"{name} is not installed: install the package util-linux")
    return path
