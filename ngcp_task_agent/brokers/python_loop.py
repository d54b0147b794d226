"""
Calls an `async def` in the daemon's own event loop.

Somebody else's code, so it has an `asyncio` task of its own: whatever it does with its
cancellation, the job that waits for it goes on.
"""

from __future__ import annotations

import asyncio
import importlib
import logging
import sys
import traceback
from collections.abc import AsyncGenerator, Awaitable, Coroutine
from contextlib import suppress
from functools import partial
from typing import Any

from .. import processes
from ..context import NOTHING, Context, Request, as_bytes, enter
from ..errors import BrokerError
from ..interfaces import Job, Output
from ..users import find_user
from .python_call import Function, describe_exception
from .python_text import Answer, log_failure, log_text

PATIENCE = processes.KILL_AFTER - 1.0  # seconds to end in, until it is cancelled once more
PENDING = 64  # pieces of progress that nobody has waited for

log = logging.getLogger(__name__)


class InLoop:
    """One function.

    Args:
        callable_: ``package.module:function``.
        path: Directory to look for the module in, or empty.
        max_output: Bytes it may yield.

    Attributes:
        stubborn: Whether it has ignored a cancellation, and should be called here no more.
    """

    def __init__(self, callable_: str, path: str, max_output: int) -> None:
        self.stubborn = False
        self._callable = callable_
        self._path = path
        self._max_output = max_output
        self._function: Function | None = None
        self._user = ""
        self._endings: set[asyncio.Task[None]] = set()

    async def call(self, job: Job, output: Output) -> None:
        """Call it with the job's arguments.

        Raises:
            BrokerError: It raised.
        """
        if self._function is None:
            self._user = (await find_user("", "")).name
            self._function = await self._loaded(job, output)
        output.runs_as(self._user)
        loop = asyncio.get_running_loop()
        link = _Link(loop, job, output)
        work = self._work(self._function, job, output, link)
        task = loop.create_task(work)
        ended = loop.create_future()
        task.add_done_callback(partial(_tell, ended))
        try:
            await ended
        except asyncio.CancelledError:
            if not task.done():
                link.cancelled = True
                ending = loop.create_task(self._end(task, work, job))
                self._endings.add(ending)
                ending.add_done_callback(self._endings.discard)
                # Goes on to the end even where the caller is cancelled again.
                await asyncio.shield(ending)
            raise
        finally:
            processes.sweep_soon()  # it may have started programs by itself
        if task.cancelled():
            raise BrokerError("CancelledError")
        problem = task.result()
        if problem is not None:
            raise problem

    async def _work(
        self, function: Function, job: Job, output: Output, link: _Link
    ) -> BrokerError | None:
        """Call, and give back what it raised: not even its SystemExit may end the daemon."""
        request = Request(job.task, job.uuid, job.src, job.data, job.options, job.attempt)
        context = Context(request, job.deadline, link)
        enter(context)
        try:
            value = function(job.arguments, context)
            if isinstance(value, AsyncGenerator):
                await self._pour(value, output)
            else:
                output.result(await value)
            if link.last is not None:
                await link.last
        except (asyncio.CancelledError, GeneratorExit):
            raise
        except BrokerError as exc:
            return exc
        except BaseException as exc:
            return self._failed(job, output, exc)
        return None

    async def _pour(self, pieces: AsyncGenerator[Any, None], output: Output) -> None:
        answer = Answer(output, self._max_output)
        try:
            async for piece in pieces:
                await answer.write(as_bytes(piece))
                await asyncio.sleep(0)  # one that never waits would keep everybody else waiting
        finally:
            await pieces.aclose()

    async def _loaded(self, job: Job, output: Output) -> Function:
        try:
            return await asyncio.to_thread(self._load)
        except (asyncio.CancelledError, BrokerError):
            raise
        except BaseException as exc:
            raise self._failed(job, output, exc) from exc

    def _load(self) -> Function:
        if self._path and self._path not in sys.path:
            # Behind everything else: a module of the administrator's must not
            # take the place of one the daemon imports later.
            sys.path.append(self._path)
            importlib.invalidate_caches()
        return Function(self._callable, self._path)

    def _failed(self, job: Job, output: Output, exc: BaseException) -> BrokerError:
        lines = "".join(traceback.format_exception(exc))
        log_failure(job, output, self._callable, lines)
        return BrokerError(describe_exception(exc))

    async def _end(self, task: asyncio.Task[Any], work: Coroutine[Any, Any, Any], job: Job) -> None:
        """Cancel *task*, and again after `PATIENCE`; after `KILL_AFTER` close its coroutine."""
        for patience in (PATIENCE, processes.KILL_AFTER - PATIENCE):
            task.cancel()
            await asyncio.wait((task,), timeout=patience)
            if task.done():
                return
            if not self.stubborn:
                self.stubborn = True
                log.warning(
                    "task %s: %s ignores its cancellation; from now on it is called in a "
                    "worker process, where it can be killed", job.task, self._callable,
                )  # fmt: skip
        with suppress(BaseException):  # whatever it makes of its GeneratorExit
            work.close()
        log.error(
            "task %s: %s is given up; what it has started in the agent may go on there",
            job.task, self._callable,
        )  # fmt: skip
        task.cancel()  # its last step, which finds the coroutine closed


def _tell(ended: asyncio.Future[None], task: asyncio.Task[BrokerError | None]) -> None:
    if not ended.done():
        ended.set_result(None)
    elif not task.cancelled():
        task.exception()  # seen: nobody waits for it any more


class _Link:
    """See `context.Link`."""

    __slots__ = ("_job", "_loop", "_output", "_pending", "cancelled", "followed", "last")

    def __init__(self, loop: asyncio.AbstractEventLoop, job: Job, output: Output) -> None:
        self.followed = output.followed
        self.cancelled = False
        self.last: asyncio.Task[None] | None = None  # sends the latest piece
        self._loop = loop
        self._job = job
        self._output = output
        self._pending = 0

    def progress(self, piece: bytes) -> Awaitable[None]:
        if self._pending >= PENDING:
            return NOTHING
        self._pending += 1
        self.last = self._loop.create_task(self._send(piece, self.last))
        return self.last

    async def _send(self, piece: bytes, before: asyncio.Task[None] | None) -> None:
        try:
            if before is not None:
                await asyncio.wait((before,))
            await self._output.progress(piece)
        finally:
            self._pending -= 1

    def log(self, level: int, text: str) -> None:
        log_text(self._job, self._output, level, text)

    def attended(self) -> None:
        """A cancellation is an exception here; who looks first sees it as well."""
