"""
Starts a program in a thread that is what the program has to be, and in its control group.

Mounts, niceness and the renunciation of new privileges belong to a thread, and a program
inherits those of the thread that starts it. So bounds cost nothing where all programs share
them: the daemon's own thread has renounced. Where a program is to have others, a
fresh thread changes itself, starts it and ends.
"""

from __future__ import annotations

import errno
import logging
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from typing import TypeVar

from . import cgroups, namespaces, proctable
from .confinement import Confinement

T = TypeVar("T")

log = logging.getLogger(__name__)

# One thread that has not renounced: only its like can start what needs privileges.
_free: ThreadPoolExecutor | None = None


def renounce() -> None:
    """Let programs have no new privileges, but for those started otherwise.

    Raises:
        OSError: The kernel refuses.
    """
    global _free
    if _free is None and not namespaces.has_renounced():
        _free = ThreadPoolExecutor(1, "starter")
        _free.submit(os.getpid).result()  # a thread is what it is from its start on
    namespaces.renounce_privileges()


def start(make: Callable[[], T], confinement: Confinement) -> T:
    """Call *make*, which starts a program, so that *confinement* holds for it.

    Blocks until it has been called. Limits of control groups and those that `Confinement.prefix`
    sets are the caller's.

    Raises:
        OSError: Something cannot hold here; *make* has not been called. Or what *make* raises.
    """
    missing = confinement.no_new_privileges and not namespaces.has_renounced()

    def changed() -> T:
        _change(confinement)
        return make()

    def call() -> T:
        return _in_fresh_thread(changed) if missing or confinement.own_thread else make()

    if confinement.no_new_privileges or _free is None:
        return call()
    return _free.submit(call).result()


def make_group(
    delegation: cgroups.Delegation, number: int, confinement: Confinement, undo: ExitStack
) -> cgroups.Group | None:
    """A control group for a program, with its limits; None if there is none to be had.

    Raises:
        OSError: A limit cannot hold.
    """
    if not delegation.directory:
        return None
    try:
        group = cgroups.Group(delegation.directory, str(number))
    except OSError as exc:
        log.warning("no control group to be had: %s", exc)
        return None
    undo.callback(group.remove)
    held = delegation.controllers
    try:
        group.limit(
            memory=confinement.memory if "memory" in held else 0,
            pids=confinement.pids if "pids" in held else 0,
            cpu=confinement.cpu if "cpu" in held else 0,
        )
    except OSError as exc:
        raise OSError(exc.errno, f"limits cannot hold here: {exc.strerror}") from None
    return group


def enter(group: cgroups.Group, pid: int, confinement: Confinement) -> None:
    """Move a program in; where the group has limits, with what it has started meanwhile.

    Raises:
        OSError: It cannot be moved, and its limits would not hold.
    """
    limited = confinement.memory or confinement.pids or confinement.cpu
    try:
        group.add(pid)
    except OSError as exc:
        if limited:
            raise OSError(exc.errno, f"limits cannot hold here: {exc.strerror}") from None
        log.warning("process %d cannot be put into its control group: %s", pid, exc.strerror)
    if limited:
        with suppress(FileNotFoundError):
            for child in proctable.children_of(pid):
                enter(group, child, confinement)


def _change(confinement: Confinement) -> None:
    """Make this thread what the program is to be; there is no way back."""
    if confinement.nice is not None:
        with _told("limits.nice"):
            # Linux: of the calling thread alone.
            os.setpriority(os.PRIO_PROCESS, 0, confinement.nice)
    if confinement.read_only_paths or confinement.private_tmp:
        with _told("read_only_paths" if confinement.read_only_paths else "private_tmp"):
            namespaces.leave_mounts()
    with _told("read_only_paths"):
        namespaces.make_read_only(confinement.read_only_paths)
    if confinement.private_tmp:
        # Last: it stays writable where "/" is read-only.
        with _told("private_tmp"):
            namespaces.mount_private_tmp(confinement.private_tmp)
    if confinement.no_new_privileges:
        namespaces.renounce_privileges()


@contextmanager
def _told(key: str) -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        raise OSError(exc.errno, f"{key} cannot hold here: {exc.strerror}") from None


def _in_fresh_thread(function: Callable[[], T]) -> T:
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(function())
        except BaseException as exc:
            future.set_exception(exc)

    thread = threading.Thread(target=run, name="starter")
    try:
        thread.start()
    except RuntimeError:
        raise OSError(errno.EAGAIN, "no thread to be had to start it") from None
    thread.join()
    return future.result()
