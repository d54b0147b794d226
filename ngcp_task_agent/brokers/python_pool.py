"""
Worker processes that call one plain Python function, one job at a time each.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
from typing import Any

from ..errors import BrokerError, MessageError
from ..interfaces import Job
from ..messages import decode, encode
from ..processes import Program
from .python_worker import HEADER

IDLE_FOR = 60.0  # seconds a worker without work is kept
# What the service manager has said to the daemon alone.
NOT_THEIRS = ("NOTIFY_SOCKET", "WATCHDOG_", "LISTEN_", "CREDENTIALS_DIRECTORY", "JOURNAL_STREAM")
READ_SIZE = 256 * 1024  # bytes

log = logging.getLogger(__name__)


class Pool:
    """Workers for one function.

    Args:
        callable_: ``package.module:function``.
        path: Directory to look for the module in, or empty.
    """

    def __init__(self, callable_: str, path: str) -> None:
        self._callable = callable_
        self._path = path
        self._idle: list[_Worker] = []
        self._closed = False

    async def call(self, job: Job) -> Any:
        """Call the function with the job's arguments.

        Raises:
            BrokerError: It raised, or its process died.
        """
        try:
            arguments = encode(dict(job.arguments))
        except MessageError as exc:
            raise BrokerError(f"the arguments cannot be passed on: {exc}") from exc
        worker = self._take()
        try:
            kind, payload = await worker.exchange(arguments)
        except asyncio.CancelledError:
            await worker.end()
            raise
        except (OSError, EOFError) as exc:
            reason = await worker.last_words()
            raise BrokerError(f"the worker process of {self._callable} {reason}") from exc
        self._put_back(worker)
        if kind == b"R":
            return decode(payload)
        failure = decode(payload)
        log.error("task %s, request %.80r: %s failed", job.task, job.uuid, self._callable)
        for line in failure["traceback"].splitlines():
            log.error("  %s", line)
        raise BrokerError(failure["reason"])

    def close(self) -> None:
        """End the idle workers; busy ones end after their job."""
        self._closed = True
        while self._idle:
            self._idle.pop().finish()

    def _take(self) -> _Worker:
        while self._idle:
            worker = self._idle.pop()
            worker.keep()
            if worker.alive:
                return worker
            worker.finish()
        try:
            return _Worker(self._callable, self._path)
        except OSError as exc:
            raise BrokerError(f"cannot start a worker process: {exc.strerror}") from exc

    def _put_back(self, worker: _Worker) -> None:
        if self._closed or not worker.alive:
            worker.finish()
            return
        self._idle.append(worker)
        worker.retire_later(self._retire)

    def _retire(self, worker: _Worker) -> None:
        self._idle.remove(worker)
        worker.finish()


class _Worker:
    def __init__(self, callable_: str, path: str) -> None:
        self._loop = asyncio.get_running_loop()
        self._ours, theirs = socket.socketpair()
        self._ours.setblocking(False)
        self._timer: asyncio.TimerHandle | None = None
        with theirs:
            fd = theirs.fileno()
            argv = [
                sys.executable, "-P", "-m", "ngcp_task_agent.brokers.python_worker",
                str(fd), callable_, path,
            ]  # fmt: skip
            env = {k: v for k, v in os.environ.items() if not k.startswith(NOT_THEIRS)}
            self._program = Program(argv, env, pass_fds=(fd,), capture=False)

    @property
    def alive(self) -> bool:
        return self._program.returncode is None

    async def exchange(self, payload: bytes) -> tuple[bytes, bytes]:
        await self._loop.sock_sendall(self._ours, HEADER.pack(b"C", len(payload)) + payload)
        kind, length = HEADER.unpack(await self._read(HEADER.size))
        return kind, await self._read(length)

    async def _read(self, length: int) -> bytes:
        data = bytearray()
        while len(data) < length:
            size = min(READ_SIZE, length - len(data))
            piece = await self._loop.sock_recv(self._ours, size)
            if not piece:
                raise EOFError
            data += piece
        return bytes(data)

    async def last_words(self) -> str:
        await self.end()
        code = self._program.returncode
        if code is not None and code < 0:
            with contextlib.suppress(ValueError):
                return f"was killed by signal {signal.Signals(-code).name}"
        return f"ended with exit code {code}"

    def retire_later(self, retire: Any) -> None:
        self._timer = self._loop.call_later(IDLE_FOR, retire, self)

    def keep(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def finish(self) -> None:
        self.keep()
        self._ours.close()
        self._program.finish()

    async def end(self) -> None:
        self.keep()
        self._ours.close()
        await self._program.end()
