"""
One worker process: started, given jobs one by one, ended.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from ..confinement import Confinement
from ..errors import MessageError
from ..interfaces import Job, Output
from ..messages import Encoded, decode
from ..processes import Program
from ..users import User
from .python_call import (
    CALL,
    FAILED,
    HEADER,
    LARGEST,
    LOG,
    PIECE,
    PROGRESS,
    RESULT,
    TEXT,
    USAGE,
)
from .python_text import Answer, Budget, Prints, log_text

READ_SIZE = 256 * 1024  # bytes
LARGE = 1024 * 1024  # bytes of a result that is passed on as it is
BREATHE = 16  # reads and frames after which the event loop gets its turn
# What the service manager has said to the daemon alone.
NOT_THEIRS = ("NOTIFY_SOCKET", "WATCHDOG_", "LISTEN_", "CREDENTIALS_DIRECTORY", "JOURNAL_STREAM")
# All of the daemon's environment that another user gets.
FOR_OTHERS = ("PATH", "LANG", "LC_", "TZ", "PYTHON")


class Kind(NamedTuple):
    """What a worker is started with; one of another kind cannot do its jobs.

    Attributes:
        callable: ``package.module:function``.
        path: Directory to look for the module in, or empty.
        user: Whom it runs as.
        variables: Added to its environment.
        confinement: The bounds within which it runs, for all of its jobs together.
    """

    callable: str
    path: str
    user: User
    variables: Mapping[str, str]
    confinement: Confinement

    def environment(self) -> dict[str, str]:
        """The daemon's own, or for another user a clean one, and the task's variables."""
        user, env = self.user, dict(os.environ)
        env = {key: value for key, value in env.items() if not key.startswith(NOT_THEIRS)}
        if user.switch:
            env = {key: value for key, value in env.items() if key.startswith(FOR_OTHERS)}
            env.update(HOME=user.home, USER=user.name, LOGNAME=user.name)
        return {**env, **self.variables}


class Reply(NamedTuple):
    """How a job ended.

    Attributes:
        kind: `RESULT`, `TEXT` or `FAILED`.
        value: What came with it.
        cpu_seconds: Processor time of this job; None if nobody knows.
        memory: Resident bytes after it.
        peak_memory: The most of them.
    """

    kind: bytes
    value: Any
    cpu_seconds: float | None
    memory: int | None
    peak_memory: int | None


class Unread(Exception):
    """The process has died, and has certainly not begun with the job."""


class Died(Exception):
    """The process has died, or sends what is no frame."""


class Worker:
    """A worker process.

    Args:
        kind: What to start.

    Attributes:
        kind: The same.
        jobs: How many it has done.

    Raises:
        OSError: It could not be started, or not be confined.
        BrokerError: A tool that confines it is not installed.
        ValueError: A NUL character in a variable.
    """

    def __init__(self, kind: Kind) -> None:
        self.kind = kind
        self.jobs = 0
        self._loop = asyncio.get_running_loop()
        self._data = bytearray()
        self._reads = 0
        self._timer: asyncio.TimerHandle | None = None
        self._ours, theirs = socket.socketpair()
        self._ours.setblocking(False)
        self._budget = Budget()
        self._prints = Prints(self._budget)
        try:
            with theirs:
                self._program = _start(kind, theirs.fileno(), self._prints.theirs)
        except BaseException:
            self._ours.close()
            self._prints.close()
            raise
        finally:
            os.close(self._prints.theirs)
        # What it has forked may hold its end of the socket, and would be waited for.
        self._program.on_exit(self._hang_up)

    @property
    def clean(self) -> bool:
        """Whether nothing of its last job is left: no words, no processes."""
        return not self._data and not self._program.has_children()

    @property
    def alive(self) -> bool:
        return self._program.returncode is None

    @property
    def pid(self) -> int:
        return self._program.pid

    @property
    def limit_hit(self) -> str:
        """Which limit has ended it; empty if none."""
        return self._program.account.limit_hit

    @property
    def returncode(self) -> int | None:
        """Exit code, minus the signal that ended it, or None while it runs."""
        return self._program.returncode

    async def do(self, call: bytes, job: Job, output: Output, answer: Answer) -> Reply:
        """Let it do one job.

        Args:
            call: The job, as the worker reads it.
            job: The same.
            output: Where it says more than its answer.
            answer: Where the pieces of its answer go.

        Raises:
            Unread: It died before the job.
            Died: It died meanwhile.
            BrokerError: The pieces cannot be kept.
        """
        self._prints.belong_to(job, output)
        try:
            await self._loop.sock_sendall(self._ours, HEADER.pack(CALL, len(call)) + call)
        except OSError as exc:
            raise Unread from exc
        usage: dict[str, Any] = {}
        while True:
            try:
                kind, data = await self._frame()
            except ConnectionResetError as exc:
                # unix(7): a process that ends with unread bytes in its socket resets it.
                # So it has not read all of the call, and done nothing.
                raise Unread from exc
            except (EOFError, OSError) as exc:
                raise Died from exc
            if kind == PIECE:
                await answer.write(data)
            elif kind == PROGRESS:
                await output.progress(data)
            elif kind == LOG:
                record = _log_record(data)
                if self._budget.allows(job.task):
                    log_text(job, output, *record)
            elif kind == USAGE:
                usage = _json(data, dict)
            else:
                break
        self._prints.drain()
        self.jobs += 1
        return Reply(
            kind, _ending(kind, data),
            _amount(usage, "cpu"), _whole(usage, "memory"), _whole(usage, "peak"),
        )  # fmt: skip

    def _hang_up(self) -> None:
        with contextlib.suppress(OSError):  # closed already
            self._ours.shutdown(socket.SHUT_RD)

    async def last_words(self) -> str:
        """End it, and tell how it ended of itself and what it printed last."""
        await self.end()
        code, last = self._program.returncode, self._prints.last
        how = f"ended with exit code {code}"
        if code is not None and code < 0:
            with contextlib.suppress(ValueError):
                how = f"was killed by signal {signal.Signals(-code).name}"
        return f"{how}: {last}" if last else how

    def retire_later(self, seconds: float, retire: Callable[[Worker], None]) -> None:
        """Call *retire* unless `keep` is called before."""
        self._timer = self._loop.call_later(seconds, retire, self)

    def keep(self) -> None:
        """It is needed again."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def finish(self) -> None:
        """End it, meanwhile."""
        self.keep()
        self._ours.close()
        self._prints.close()
        self._program.finish()

    async def end(self) -> None:
        """End it and all that it has started; what it prints until then is logged."""
        self.keep()
        self._ours.close()
        try:
            await self._program.end()
        finally:
            self._prints.close()

    async def _frame(self) -> tuple[bytes, bytes]:
        self._reads += 1
        if self._reads % BREATHE == 0:
            await asyncio.sleep(0)  # reading what is there already gives way to nobody
        kind, length = HEADER.unpack(await self._read(HEADER.size))
        if length > LARGEST.get(kind, -1):
            raise Died("said what no worker says")
        return kind, await self._read(length)

    async def _read(self, length: int) -> bytes:
        while len(self._data) < length:
            self._reads += 1
            if self._reads % BREATHE == 0:
                await asyncio.sleep(0)
            piece = await self._loop.sock_recv(self._ours, READ_SIZE)
            if not piece:
                raise EOFError
            self._data += piece
        piece = bytes(self._data[:length])
        del self._data[:length]
        return piece


def _start(kind: Kind, fd: int, output: int) -> Program:
    argv = [
        *kind.user.switch, sys.executable, "-P", "-m", "ngcp_task_agent.brokers.python_worker",
        str(fd), kind.callable, kind.path,
    ]  # fmt: skip
    return Program(
        argv, kind.environment(), cwd="/" if kind.user.switch else "", pass_fds=(fd,),
        capture=False, output=output, confinement=kind.confinement,
    )  # fmt: skip


def _ending(kind: bytes, data: bytes) -> Any:
    if kind == RESULT and len(data) > LARGE:
        return Encoded(data)
    if not data and kind != TEXT:
        raise Died("said what no worker says")
    return _json(data, dict if kind == FAILED else object) if data else None


def _json(data: bytes, expected: type) -> Any:
    try:
        value = decode(data)
    except MessageError as exc:
        raise Died("said what no worker says") from exc
    if not isinstance(value, expected):
        raise Died("said what no worker says")
    return value


def _log_record(data: bytes) -> tuple[int, str]:
    record = _json(data, list)
    if len(record) != 2 or type(record[0]) is not int or type(record[1]) is not str:
        raise Died("said what no worker says")
    return min(max(record[0], 0), 50), record[1]


def _whole(usage: Mapping[str, Any], name: str) -> int | None:
    value = usage.get(name)
    return value if type(value) is int and 0 <= value < 1 << 60 else None


def _amount(usage: Mapping[str, Any], name: str) -> Any:
    value = usage.get(name)
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1e9:
        return value
    return None
