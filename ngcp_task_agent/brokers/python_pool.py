"""
Worker processes that call one Python function, one job at a time each.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from typing import Any

from ..confinement import read_confinement
from ..context import Request
from ..environment import Environment
from ..errors import BrokerError, MessageError
from ..interfaces import Job, Output
from ..messages import encode
from ..options import Options
from ..users import find_user
from .python_call import FAILED, RESULT
from .python_process import Died, Kind, Reply, Unread, Worker
from .python_text import MAX_OUTPUT, Answer, log_failure

IDLE_FOR = 60.0  # seconds a worker without work is kept
RECYCLE_JOBS = 1000  # jobs after which a worker is replaced
RECYCLE_MEMORY = 256 * 1024 * 1024  # resident bytes after a job, likewise

# What the daemon's own process cannot do for one of its functions.
FOR_WORKERS = (
    "as_user", "as_group", "env", "env_files",
    "limits", "private_tmp", "no_new_privileges", "read_only_paths",
)  # fmt: skip

log = logging.getLogger(__name__)


class Settings:
    """Broker options that concern worker processes.

    - ``as_user``, ``as_group``: whom they run as, with the user's supplementary groups
    - ``env``, ``env_files``: added to their environment; see `environment`
    - ``recycle_jobs``: jobs after which a worker is replaced, default 1000; 0: never
    - ``recycle_memory``: resident bytes after a job, likewise, default 256 MiB
    - ``max_output``: bytes that a generator may yield, default 64 MiB
    - ``limits``, ``private_tmp``, ``no_new_privileges``, ``read_only_paths``: of each worker;
      see `confinement`
    """

    def __init__(self, options: Options) -> None:
        self.as_user = options.text("as_user")
        self.as_group = options.text("as_group")
        self.environment = Environment(options)
        self.recycle_jobs = options.integer("recycle_jobs", RECYCLE_JOBS)
        self.recycle_memory = options.size("recycle_memory", RECYCLE_MEMORY, minimum=0)
        self.max_output = options.size("max_output", MAX_OUTPUT)
        self.confinement = read_confinement(options)
        self.needed = any(key in options for key in FOR_WORKERS)


class Pool:
    """Workers for one function.

    Args:
        callable_: ``package.module:function``.
        path: Directory to look for the module in, or empty.
        settings: How they are started, and how long they are kept.
    """

    def __init__(self, callable_: str, path: str, settings: Settings) -> None:
        self._callable = callable_
        self._path = path
        self._settings = settings
        self._idle: list[Worker] = []
        self._closed = False

    async def call(self, job: Job, output: Output) -> None:
        """Call the function with the job's arguments.

        Raises:
            BrokerError: It raised, or its process died.
        """
        call = _encode_call(job, output.followed)
        kind = await self._kind(output)
        worker = self._take(kind)
        try:
            reply = await self._do(worker, call, job, output)
        except Unread:
            if not worker.jobs:  # it has not even come up; another would not either
                raise await self._death(worker, output) from None
            worker.finish()
            worker = self._start(kind)
            try:
                reply = await self._do(worker, call, job, output)
            except Unread:
                raise await self._death(worker, output) from None
        output.exited(None, cpu_seconds=reply.cpu_seconds, peak_memory=reply.peak_memory)
        self._put_back(worker, job, reply)
        if reply.kind == RESULT:
            output.result(reply.value)
        elif reply.kind == FAILED:
            log_failure(job, output, self._callable, _text(reply.value, "traceback"))
            raise BrokerError(_text(reply.value, "reason"))

    def close(self) -> None:
        """End the idle workers; busy ones end after their job."""
        self._closed = True
        while self._idle:
            self._idle.pop().finish()

    async def _kind(self, output: Output) -> Kind:
        settings = self._settings
        variables = settings.environment.variables()
        output.hide(variables)
        user = await find_user(settings.as_user, settings.as_group)
        return Kind(self._callable, self._path, user, variables, settings.confinement)

    async def _do(self, worker: Worker, call: bytes, job: Job, output: Output) -> Reply:
        output.runs_as(worker.kind.user.name, worker.pid)
        answer = Answer(output, self._settings.max_output)
        try:
            return await worker.do(call, job, output, answer)
        except asyncio.CancelledError:
            try:
                await worker.end()
            finally:
                output.exited(worker.returncode)
            raise
        except Died as exc:
            raise await self._death(worker, output, str(exc)) from exc
        except Unread:
            raise
        except BaseException:
            worker.finish()
            raise

    async def _death(self, worker: Worker, output: Output, how: str = "") -> BrokerError:
        words = await worker.last_words()
        output.exited(worker.returncode)
        if worker.limit_hit:
            return BrokerError(worker.limit_hit)
        return BrokerError(f"the worker process of {self._callable} {how or words}")

    def _take(self, kind: Kind) -> Worker:
        while self._idle:
            worker = self._idle.pop()
            worker.keep()
            # A secret that has changed asks for new workers.
            if worker.alive and worker.kind == kind:
                return worker
            worker.finish()
        return self._start(kind)

    def _start(self, kind: Kind) -> Worker:
        try:
            return Worker(kind)
        except OSError as exc:
            raise BrokerError(f"cannot start a worker process: {exc.strerror}") from exc
        except ValueError as exc:  # a NUL character
            raise BrokerError(f"cannot start a worker process: {exc}") from exc

    def _put_back(self, worker: Worker, job: Job, reply: Reply) -> None:
        settings, memory = self._settings, reply.memory or 0
        if settings.confinement.memory:  # what one job has left is missing in the next
            most = min(settings.recycle_memory or memory, settings.confinement.memory // 2)
        else:
            most = settings.recycle_memory
        spent = 0 < settings.recycle_jobs <= worker.jobs
        if spent or 0 < most < memory:
            log.info(
                "task %s: worker process %d is replaced after %d jobs, with %d MiB",
                job.task, worker.pid, worker.jobs, memory >> 20,
            )  # fmt: skip
            worker.finish()
        elif self._closed or not worker.alive or not worker.clean:
            worker.finish()
        else:
            self._idle.append(worker)
            worker.retire_later(IDLE_FOR, self._retire)

    def _retire(self, worker: Worker) -> None:
        self._idle.remove(worker)
        worker.finish()


def _encode_call(job: Job, followed: bool) -> bytes:
    request = Request(job.task, job.uuid, job.src, job.data, job.options, job.attempt)
    try:
        return encode(
            {
                "arguments": dict(job.arguments),
                "request": request._asdict(),
                "deadline": job.deadline,
                "followed": followed,
            }
        )
    except MessageError as exc:
        raise BrokerError(f"the arguments cannot be passed on: {exc}") from exc


def _text(failure: Mapping[str, Any], name: str) -> str:
    value = failure.get(name)
    return value if isinstance(value, str) else ""
