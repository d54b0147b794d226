"""
Programs and all that descends from them: start, read, end the whole tree, reap.

The daemon is a child subreaper: what a program leaves behind becomes the daemon's
child, wherever it has moved to (`setsid`, double fork), and so can always be found.
A process belongs to a program if it is in its control group (where one is delegated),
descends from it, is in its session or process group, carries its mark in the environment,
or holds its output open. One that hides from all of these is ended with the last program
it could have come from.
"""

from __future__ import annotations

import asyncio
import errno
import itertools
import logging
import os
import secrets
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress

from . import cgroups, namespaces, proctable, starter
from .account import Account, draw_up
from .confinement import Confinement
from .pipes import Pipe, Tail
from .proctable import Look, Process, children_of, open_files_of, read_process
from .reaper import Reaper, strays

KILL_AFTER = 5.0  # seconds between SIGTERM and SIGKILL
GIVE_UP_AFTER = 5.0  # seconds of SIGKILL; a process in the kernel's hands may not end
HUNT = 0.01  # seconds at a time spent on children that fork faster than one can look
COUNT_EVERY = 0.1  # seconds between two counts where no limit of the kernel's holds
LOOK_EVERY = 0.02  # seconds between two looks at a tree that is being ended, at first
LOOK_SELDOM = 0.1  # seconds between them, later
REMOVALS = 50  # attempts to remove a control group that is empty, `LOOK_SELDOM` apart
MARK = "NGCP_TASK_JOB"  # environment variable that tells whose a process is
_TICKS = os.sysconf("SC_CLK_TCK")

log = logging.getLogger(__name__)

_OWN_MARK = secrets.token_hex(16)
_numbers = itertools.count(1)

# The kernel keeps one list of children for the whole process; this is its mirror:
# the programs we have started and not yet reaped, by pid.
_running: dict[int, Program] = {}

# Two more facts of the whole process, set by `adopt_orphans`.
_delegation = cgroups.Delegation()
_reaper: Reaper | None = None

_present = Look()  # shared by many trees that are ended at once


class Program:
    """A started program, the leader of its own session.

    Args:
        argv: Program (name or path) and its arguments, as bytes where the locale of
            the daemon is to have no say; never a shell.
        env: The whole environment; `MARK` is added.
        cwd: Directory to start in; empty for the daemon's.
        umask: File mode mask; -1 for the daemon's.
        stdin: File descriptor to read from, or `subprocess.DEVNULL`.
        pass_fds: Further descriptors the program inherits.
        capture: Whether stdout and stderr are pipes read by `read` and `stderr`;
            else both go to `output`.
        owner: User number to whom its ends of the pipes belong, so that it can open
            /dev/stdout and /dev/stderr; -1 for the daemon's.
        follow: Whether stderr is read by `read_error` as it comes.
        output: File descriptor, by default the daemon's stderr.
        confinement: The bounds within which it runs.

    Attributes:
        pid: Its number, that of its session as well.
        account: What it has used, and whether a limit has ended it; empty until its end.

    Raises:
        OSError: It could not be started, or *confinement* not be had; nothing is left of it.
        BrokerError: A tool for *confinement* is not installed.
        ValueError: A NUL character in an argument.
    """

    account = Account()

    def __init__(
        self,
        argv: Sequence[str | bytes],
        env: Mapping[str, str],
        *,
        cwd: str = "",
        umask: int = -1,
        stdin: int = subprocess.DEVNULL,
        pass_fds: Sequence[int] = (),
        capture: bool = True,
        owner: int = -1,
        follow: bool = False,
        output: int = 2,
        confinement: Confinement = Confinement(),  # noqa: B008  it is frozen
    ) -> None:
        number = next(_numbers)
        self._loop = asyncio.get_running_loop()
        self._mark = secrets.token_hex(16)  # its own: a job can carry no other's
        self._known: dict[int, int] = {}  # descendants seen: pid to start time
        self._ending: asyncio.Task[None] | None = None
        self._hurry = False
        self._confinement = confinement
        self._resident = 0  # the most bytes seen, of the program alone
        self.began = int(time.clock_gettime(time.CLOCK_BOOTTIME) * _TICKS) - 1
        with ExitStack() as undo, ExitStack() as theirs:
            self._group = starter.make_group(_delegation, number, confinement, undo)
            self._held = _delegation.controllers if self._group else frozenset()
            stdout = Pipe(self._loop, undo, theirs) if capture else None
            stderr: Pipe | Tail | None = None
            if capture:
                stderr = (Pipe if follow else Tail)(self._loop, undo, theirs)
            for pipe in (stdout, stderr):
                if pipe is not None and owner >= 0:
                    os.fchown(pipe.theirs, owner, -1)
            # Popen blocks until the program is running, by vfork, whose cost does not
            # grow with this process. So there is no await between start and record,
            # where a cancellation could leave a program that nobody knows of.
            argv = [*confinement.prefix(self._held), *argv]
            self._popen = starter.start(
                lambda: subprocess.Popen(
                    argv,
                    stdin=stdin,
                    stdout=stdout.theirs if stdout else output,
                    stderr=stderr.theirs if stderr else output,
                    env={**env, MARK: self._mark},
                    cwd=cwd or None,
                    umask=umask,
                    pass_fds=pass_fds,
                    start_new_session=True,
                ),
                confinement,
            )
            undo.callback(_undo_start, self._popen)
            self.pid = self._popen.pid
            self._pidfd = os.pidfd_open(self.pid)
            undo.callback(os.close, self._pidfd)
            if self._group is not None:
                starter.enter(self._group, self.pid, confinement)
            undo.pop_all()
        _running[self.pid] = self
        self._exited: asyncio.Future[int] = self._loop.create_future()
        self._loop.add_reader(self._pidfd, self._on_exit)
        self._stdout, self._stderr = stdout, stderr
        if self._group is not None:
            self._gather()
        if confinement.pids and "pids" not in self._held and os.geteuid() == 0:
            self._loop.call_later(COUNT_EVERY, self._count)
        sweep_soon()

    @property
    def returncode(self) -> int | None:
        """Exit code, minus the signal number, or None while it runs."""
        return self._popen.returncode

    def has_children(self) -> bool:
        """Whether something that it has started is left."""
        with suppress(OSError):
            return bool(children_of(self.pid))
        return False

    @property
    def stderr(self) -> bytes:
        """The last bytes of stderr, if it is not followed."""
        return self._stderr.data if isinstance(self._stderr, Tail) else b""

    async def read(self) -> bytes:
        """The next piece of stdout; empty at its end, or once the program has ended
        and a child of it that holds on to the pipe says nothing more."""
        assert self._stdout is not None
        piece = await self._stdout.read()
        if piece and not self._resident:  # it may be over before the next sweep
            self.look()
        return piece

    async def read_error(self) -> bytes:
        """The next piece of stderr where it is followed; see `read`."""
        assert isinstance(self._stderr, Pipe)
        return await self._stderr.read()

    def on_exit(self, tell: Callable[[], None]) -> None:
        """Call *tell* when the program itself has ended."""
        self._exited.add_done_callback(lambda _: tell())

    async def wait(self) -> int:
        """The exit code, or minus the signal number, of the program itself."""
        return await asyncio.shield(self._exited)

    def finish(self) -> None:
        """Close; where the program has left children behind, end them first, meanwhile."""
        if self._ending is None and self._exited.done() and not self._leftovers():
            self._close()
        elif self._pidfd >= 0:
            self._start_ending()

    async def end(self) -> None:
        """End the whole tree: SIGTERM, `KILL_AFTER` seconds, SIGKILL; then close.

        Goes on to the end even where the caller is cancelled.
        """
        await asyncio.shield(self._start_ending())

    def _start_ending(self) -> asyncio.Task[None]:
        if self._ending is None:
            self._ending = self._loop.create_task(self._end())
        return self._ending

    async def _end(self) -> None:
        try:
            await self._end_tree()
        finally:
            self._close()

    async def _end_tree(self) -> None:
        began = self._loop.time()
        termed: set[int] = set()
        empty: set[int] = set()
        while len(empty) < 2:  # one look can miss who has just forked
            members = self._members()
            empty = set() if members else empty | {_present.number}
            elapsed = self._loop.time() - began
            if elapsed > KILL_AFTER + GIVE_UP_AFTER:
                log.error("processes %s cannot be ended", [m.pid for m in members])
                break
            if self._hurry or elapsed > KILL_AFTER:
                self._kill(members)
            else:
                fresh = [m for m in members if m.pid not in termed]
                _signal(fresh, signal.SIGTERM)
                _signal(fresh, signal.SIGCONT)  # a stopped process hears nothing else
                termed.update(m.pid for m in fresh)
            await asyncio.sleep(min(LOOK_EVERY + elapsed / 20, LOOK_SELDOM))

    def _kill(self, members: Sequence[Process]) -> None:
        """SIGKILL: first to whole groups, which no fork escapes, then one by one."""
        if self._group is not None:
            self._group.kill()
        for group in {member.group for member in members} - {os.getpgrp()}:
            with suppress(OSError):
                os.killpg(group, signal.SIGKILL)
        _signal(members, signal.SIGKILL)
        # Who forks and ends all the time is gone before a look at all processes is
        # over. Each such step makes the new one the daemon's own child: a short list.
        hunted, seen = time.monotonic() + HUNT, True
        while seen and time.monotonic() < hunted:
            seen = False
            for pid in strays(_running):
                try:
                    child = read_process(pid)
                    if child.state not in "ZX" and self._left_behind(child):
                        seen = True
                        os.kill(pid, signal.SIGKILL)
                except OSError:
                    seen = True  # gone between two looks: that is one of those

    def _members(self) -> list[Process]:
        """Everyone alive who belongs to this program; the dead ones are reaped."""
        _present.refresh()
        self._reap()
        found: dict[int, Process] = {}
        waiting = self._roots()
        while waiting:
            process = waiting.pop()
            if process.pid not in found:
                found[process.pid] = process
                waiting += _present.children.get(process.pid, ())
        # The dead as well: who was never seen alive is reaped at the next look.
        self._known.update((process.pid, process.started) for process in found.values())
        return [process for process in found.values() if process.state not in "ZX"]

    def _roots(self) -> list[Process]:
        """Those from whom all others of this program descend, over whatever detours."""
        table = _present.table
        roots = [c for c in _present.children.get(os.getpid(), ()) if self._left_behind(c)]
        if not self._exited.done() and self.pid in table:
            roots.append(table[self.pid])
        for pid, started in self._known.items():
            process = table.get(pid)
            if process is not None and process.started == started:
                roots.append(process)
        if self._group is not None:
            roots += [table[pid] for pid in self._group.pids() if pid in table]
        return roots

    def _reap(self) -> None:
        """Reap descendants that the daemon has adopted and that have ended."""
        for pid, started in self._known.items():
            process = _present.table.get(pid)
            if process is None or process.started != started or pid in _running:
                continue
            if process.state == "Z" and process.parent == os.getpid():
                with suppress(ChildProcessError):
                    os.waitpid(pid, os.WNOHANG)

    def _gather(self) -> None:
        """Move in who was started, and left alone, before the program was in its group."""
        assert self._group is not None
        for pid in strays(_running):
            with suppress(OSError):
                child = read_process(pid)
                if child.state not in "ZX" and self._left_behind(child):
                    self._group.add(pid)

    def _left_behind(self, child: Process) -> bool:
        """Whether *child* of the daemon was once a descendant of this program."""
        if child.pid in _running or child.session == os.getsid(0):
            return False  # another program's, or a child that a plug-in has started itself
        if self.pid in (child.session, child.group):
            return True
        mark = _present.variable_of(child, MARK)
        if mark == self._mark:
            return True
        if mark == _OWN_MARK or any(p._mark == mark for p in _running.values()):
            return False  # any other mark says nothing: everybody can make one up
        others = (p for p in _running.values() if p is not self and p._stdout is not None)
        return self._holds_pipe(child.pid) or not any(p.began <= child.started for p in others)

    def _leftovers(self) -> bool:
        """Whether the program, itself at its end, has left anybody behind."""
        if self._group is not None and not self._group.remove():
            return True
        for pid in strays(_running):
            with suppress(OSError):
                child = read_process(pid)
                if child.state not in "ZX" and self._left_behind(child):
                    return True
        return False

    def _holds_pipe(self, pid: int) -> bool:
        return bool(self._stdout and self._stdout.inode in open_files_of(pid))

    def look(self) -> None:
        """Remember how much memory it has, where only a look tells."""
        if "memory" not in self._held:
            self._resident = max(self._resident, proctable.peak_memory_of(self.pid))

    def _count(self) -> None:
        """End the tree if it is too large: the kernel limits no processes of root's."""
        if self._pidfd < 0 or proctable.user_of(self.pid) > 0:
            return
        if len(self._group.pids() if self._group else self._members()) > self._confinement.pids:
            reason = f"more than {self._confinement.pids} processes (limits.pids)"
            self.account = Account(limit_hit=reason)
            self._hurry = True
            self._start_ending()
        else:
            self._loop.call_later(COUNT_EVERY, self._count)

    def _on_exit(self) -> None:
        self._loop.remove_reader(self._pidfd)
        try:
            pid, status, usage = os.wait4(self.pid, os.WNOHANG)
        except ChildProcessError:  # somebody else has reaped it: nobody knows
            self._popen.returncode = 255
        else:
            if pid:
                code = self._popen.returncode = os.waitstatus_to_exitcode(status)
                bill = draw_up(usage, code, self._resident, self._group, self._confinement)
                self.account = bill._replace(limit_hit=self.account.limit_hit or bill.limit_hit)
        code = self._popen.returncode
        self._exited.set_result(-signal.SIGKILL if code is None else code)
        for pipe in (self._stdout, self._stderr):
            if isinstance(pipe, Pipe):
                pipe.program_ended()

    def _close(self) -> None:
        if self._pidfd < 0:
            return
        if not self._exited.done():
            self._on_exit()
        os.close(self._pidfd)
        self._pidfd = -1
        self._remove_group(REMOVALS)
        for pipe in (self._stdout, self._stderr):
            if pipe is not None:
                pipe.close()
        _running.pop(self.pid, None)

    def _remove_group(self, tries: int) -> None:
        """On a busy machine the kernel is not done with a group when its last process is."""
        if self._group is not None and not self._group.remove() and tries > 1:
            self._loop.call_later(LOOK_SELDOM, self._remove_group, tries - 1)


def adopt_orphans(loop: asyncio.AbstractEventLoop) -> None:
    """Make this process the parent of all that its programs leave behind.

    Raises:
        OSError: The kernel refuses (Linux 3.5 does not).
    """
    global _delegation, _reaper
    # What code in this process starts by itself inherits a mark that is nobody's.
    os.environ[MARK] = _OWN_MARK
    _delegation = cgroups.take_over()
    namespaces.become_subreaper()
    starter.renounce()
    _reaper = Reaper(loop, _running, _look)


def sweep_soon() -> None:
    """Reap what has been adopted, in a while and as long as anything runs.

    Called after each start of a program, and to be called by whoever lets code run
    that may start programs by itself.
    """
    if _reaper is not None:
        _reaper.sweep_soon()


def _look() -> None:
    for program in _running.values():
        program.look()


def _undo_start(popen: subprocess.Popen[bytes]) -> None:
    """End a program that cannot be watched: too many descriptors are open."""
    with suppress(ProcessLookupError):
        os.killpg(popen.pid, signal.SIGKILL)
    popen.wait()


async def all_ended() -> None:
    """Wait until every tree whose end has begun is gone."""
    endings = [p._ending for p in _running.values() if p._ending is not None]
    if endings:
        await asyncio.wait(endings)


def _signal(processes: Sequence[Process], number: int) -> None:
    for process in processes:
        try:
            os.kill(process.pid, number)
        except OSError as exc:
            if exc.errno != errno.ESRCH:
                log.warning("cannot signal process %d: %s", process.pid, exc.strerror)
