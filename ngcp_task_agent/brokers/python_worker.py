"""
The program of a worker process: calls one function again and again.

Started as ``python -P -m ngcp_task_agent.brokers.python_worker FD CALLABLE PATH``
by `python_process`; what it prints goes to the daemon's log.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import time
import traceback
from _thread import allocate_lock
from collections.abc import AsyncGenerator, Awaitable, Coroutine, Generator
from typing import Any

from ..context import NOTHING, Context, Request, as_bytes, enter_process
from ..errors import BrokerError, MessageError
from ..messages import decode, encode
from .python_call import (
    FAILED,
    HEADER,
    LARGEST,
    LOG,
    PIECE,
    PROGRESS,
    RESULT,
    SMALL,
    TEXT,
    USAGE,
    Function,
    describe_exception,
)


def main() -> None:
    """Serve until the daemon closes its end."""
    fd, callable_, path = sys.argv[1:]
    with contextlib.suppress(AttributeError, ValueError):
        sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    os.set_inheritable(int(fd), False)  # nobody else's end keeps the daemon waiting
    with socket.socket(fileno=int(fd)) as connection, contextlib.suppress(OSError):
        _serve(connection, callable_, path)


def _serve(connection: socket.socket, callable_: str, path: str) -> None:
    function: Function | None = None
    pid = os.getpid()
    with connection.makefile("rb") as stream:
        while header := stream.read(HEADER.size):
            _, length = HEADER.unpack(header)
            call = decode(stream.read(length))
            job = _Job(connection, call["followed"])
            usage = _Usage()
            try:
                function = function or _load(callable_, path)
                kind, answer = job.run(function, call)
            except BaseException as exc:  # SystemExit too: the worker goes on
                kind, answer = FAILED, _failure(exc)
            if os.getpid() != pid:  # a child that the function has forked, and not ended
                os._exit(0)
            job.leave()
            _flush()
            told = usage.told()
            last = HEADER.pack(USAGE, len(told)) + told + HEADER.pack(kind, len(answer))
            if len(answer) < SMALL:  # in one piece, or the daemon is woken twice
                connection.sendall(last + answer)
            else:
                connection.sendall(last)
                connection.sendall(answer)


def _load(callable_: str, path: str) -> Function:
    if path:
        try:
            os.listdir(path)  # Python would say no more than that there is no such module
        except OSError as exc:
            who = os.environ.get("USER", "")
            raise BrokerError(f"path: {path}: {exc.strerror} for the user {who}") from None
        if path not in sys.path:
            sys.path.insert(0, path)
    return Function(callable_)


class _Gone(Exception):
    """The daemon reads no more: the job is to end."""


class _Job:
    """One call; the `Link` of its context."""

    attending: _Job | None = None  # whose function ends by itself; for the signal handler

    def __init__(self, connection: socket.socket, followed: bool) -> None:
        self.followed = followed
        self.cancelled = False
        self._connection = connection
        self._turn = allocate_lock()  # the function may have threads
        self._over = False
        self._in_loop = False

    def run(self, function: Function, call: dict[str, Any]) -> tuple[bytes, bytes]:
        """Call it; the frame that ends the job."""
        request = Request(**call["request"])
        context = Context(request, call["deadline"], self)
        enter_process(context)
        if function.wants_context:
            self.attended()
        value = function(call["arguments"], context)
        says = isinstance(value, Generator | AsyncGenerator)
        if isinstance(value, Generator):
            value = self._pour(value)
        elif isinstance(value, AsyncGenerator | Coroutine):
            value = self._run_in_loop(value)
        if says and value is None:
            return TEXT, b""
        try:
            answer = encode(value)
        except MessageError as exc:
            raise TypeError(f"the result is {exc}") from exc
        if len(answer) > LARGEST[RESULT]:
            raise ValueError(f"a result of {len(answer)} bytes; at most {LARGEST[RESULT]} are sent")
        return RESULT, answer

    def leave(self) -> None:
        """What is said from now on, by a thread that was left behind, is nobody's."""
        enter_process(None)
        _Job.attending = None
        with self._turn:
            self._over = True

    def progress(self, piece: bytes) -> Awaitable[None]:
        with contextlib.suppress(_Gone):
            self._send(PROGRESS, piece)
        return NOTHING

    def log(self, level: int, text: str) -> None:
        text = text.encode("utf-8", "replace").decode()
        if len(text) > SMALL // 8:  # not cut: what is hidden could be in two halves then
            text = f"(a text of {len(text)} characters)"
        try:
            self._send(LOG, encode([level, text]))
        except _Gone:
            print(text, file=sys.stderr)

    def attended(self) -> None:
        if self._in_loop or self._over or _Job.attending is self:
            return
        with contextlib.suppress(ValueError):  # not the main thread: SIGTERM ends it at once
            signal.signal(signal.SIGTERM, _on_term)
            _Job.attending = self

    def _send(self, kind: bytes, data: bytes) -> None:
        for start in range(0, len(data), SMALL):
            piece = data[start : start + SMALL]
            with self._turn:
                if self._over:
                    return
                try:
                    self._connection.sendall(HEADER.pack(kind, len(piece)) + piece)
                except OSError as exc:
                    raise _Gone from exc

    def _pour(self, pieces: Generator[Any, None, Any]) -> Any:
        with contextlib.closing(pieces):
            while True:
                try:
                    piece = next(pieces)
                except StopIteration as stop:
                    return stop.value
                self._send(PIECE, as_bytes(piece))

    def _run_in_loop(self, work: Any) -> Any:
        import asyncio  # a third of a worker's start time, and seldom needed

        async def main() -> Any:
            loop, task = asyncio.get_running_loop(), asyncio.current_task()
            assert task is not None

            def cancel() -> None:
                self.cancelled = True
                task.cancel()

            loop.add_signal_handler(signal.SIGTERM, cancel)
            try:
                return await (self._pour_async(work) if isinstance(work, AsyncGenerator) else work)
            finally:
                loop.remove_signal_handler(signal.SIGTERM)

        self._in_loop, _Job.attending = True, None
        try:
            return asyncio.run(main())
        finally:
            self._in_loop = False

    async def _pour_async(self, pieces: AsyncGenerator[Any, None]) -> None:
        async with contextlib.aclosing(pieces):
            async for piece in pieces:
                self._send(PIECE, as_bytes(piece))


def _on_term(number: int, _frame: object) -> None:
    if _Job.attending is not None:
        _Job.attending.cancelled = True
        return
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)


class _Usage:
    """What one job takes of this process."""

    def __init__(self) -> None:
        self._cpu = self._cpu_seconds()

    def told(self) -> bytes:
        """JSON: processor seconds with those of ended children; bytes now, and at most
        since the process began."""
        found = {"cpu": round(self._cpu_seconds() - self._cpu, 6)}
        with contextlib.suppress(OSError, ValueError):
            status = _read_proc("status")
            for name, word in (("memory", b"\nVmRSS:"), ("peak", b"\nVmHWM:")):
                found[name] = int(status.split(word, 1)[-1].split(b"kB", 1)[0]) * 1024
        return encode(found)

    @staticmethod
    def _cpu_seconds() -> float:
        return time.process_time() + sum(os.times()[2:4])


def _read_proc(name: str) -> bytes:
    """A file of /proc/self; without Python's file objects."""
    fd = os.open(f"/proc/self/{name}", os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(fd, 4096)
    finally:
        os.close(fd)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):  # the function may have closed or replaced it
            stream.flush()


def _failure(exc: BaseException) -> bytes:
    lines = "" if isinstance(exc, BrokerError) else traceback.format_exc()
    lines = lines.encode("utf-8", "replace").decode()
    if len(lines) > SMALL:  # the end, in whole lines
        lines = lines[-SMALL:].partition("\n")[2]
    return encode({"reason": describe_exception(exc), "traceback": lines})


if __name__ == "__main__":
    main()
