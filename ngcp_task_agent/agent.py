"""
The corridor: takes each delivery through every room, in order, and stops cleanly.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Collection
from contextlib import nullcontext
from weakref import WeakKeyDictionary

from .config import Limits
from .dispatch import Crowded, Dispatcher, Gate
from .errors import MessageError, NotForThisNode, Rejected
from .interfaces import Backend, Delivery
from .jobs import Record, Run
from .live import Live
from .logs import Throttle
from .messages import Request, Response, decode_request, encode_response
from .output import Collector
from .processes import GIVE_UP_AFTER, KILL_AFTER
from .replies import Replies

PACE = 32 * 1024 * 1024  # bytes a second sent to one client, once it has got `BURST`
LARGE = 256 * 1024  # bytes of a response that waits until there is room for it
BURST = 16 * 1024 * 1024  # bytes; Redis drops a subscriber with more than 32 MiB unread
RECENT = 1000  # jobs remembered after their end
LAST_ANSWERS = 2.0  # seconds for the last answers to leave when the agent stops
LAST_WORKS = KILL_AFTER + GIVE_UP_AFTER + 1.0  # seconds for what they belong to, to end

log = logging.getLogger(__name__)


class Agent:
    """Serves any number of backends.

    Args:
        dispatcher: Decides which requests are run.
        limits: Sizes and numbers; replaced when the files are read again.
        spool_dir: Where large output waits; empty for the system's default.

    Attributes:
        runs: The jobs that wait or run.
        ending: Those that are answered, and something of them is still being ended.
        recent: The last jobs that have ended; the agent's own are not among them.
        counts: What has happened since the start, by kind: accepted, done, error,
            rejected, passed_over, bad, crowded.
    """

    def __init__(self, dispatcher: Dispatcher, limits: Limits, spool_dir: str = "") -> None:
        self.runs: set[Run] = set()
        self.ending: set[Run] = set()
        self.recent: deque[Record] = deque(maxlen=RECENT)
        self.counts: Counter[str] = Counter()
        self._dispatcher = dispatcher
        self._spool_dir = spool_dir
        self._house = Gate(limits.max_running)
        self.limits = limits
        self._answering: dict[asyncio.Task[None], tuple[Run, Backend]] = {}
        self._turns: WeakKeyDictionary[Backend, asyncio.Lock] = WeakKeyDictionary()
        self._bad = Throttle(log)
        self._crowded = Throttle(log)

    @property
    def limits(self) -> Limits:
        return self._limits

    @limits.setter
    def limits(self, limits: Limits) -> None:
        self._limits = limits
        self._house.max_running = limits.max_running

    async def serve(self, name: str, backend: Backend) -> None:
        """Take what *backend*, called *name* in task files, receives, until it stops."""
        async for delivery in backend.receive():
            try:
                self.take(delivery, name, backend)
            except Exception:
                # A bug, and never a reason to become deaf: the next one is taken.
                self.counts["bad"] += 1
                log.exception("a message on %s could not be handled", name)
            del delivery  # it may be large, and the next may be long in coming

    def take(self, delivery: Delivery, name: str, backend: Backend) -> None:
        """Decide on one delivery, answer at once, and start the job.

        Never waits: `accepted` leaves before anything is started.
        """
        try:
            request = decode_request(delivery.payload, self._limits.max_request)
            address = delivery.address or _feedback_channel(request)
            admission = self._dispatcher.admit(request, delivery, name)
        except NotForThisNode as exc:
            self.counts["passed_over"] += 1
            if isinstance(exc, Crowded):
                self._note_crowded(request, exc)
            return
        except MessageError as exc:
            self.counts["bad"] += 1
            self._bad.warning("%s: not a request: %s", delivery.control_channel or name, exc)
            return
        except Rejected as exc:
            self.counts["rejected"] += 1
            self._bad.warning(
                "request %.80r from %.80r: rejected: %s", request.uuid, request.src, exc
            )
            rejected = Replies(request, self._dispatcher.node_name).rejected(str(exc))
            backend.deliver(address, encode_response(rejected))
            return
        self.counts["accepted"] += 1
        replies = Replies(request, admission.node)
        backend.deliver(address, encode_response(replies.accepted()))
        live = None
        if admission.wishes.stream:
            live = Live(
                lambda piece: backend.deliver(address, encode_response(replies.progress(piece))),
                lambda: backend.flush(address),
            )
        output = Collector(self._spool_dir, live, admission.task.mask, admission.secrets)
        run = Run(admission, self._house, output)
        self.runs.add(run)
        task = asyncio.ensure_future(self._work(run, replies, backend, address))
        self._answering[task] = (run, backend)
        task.add_done_callback(self._answered)

    async def cancel(self, ref: str, by: str) -> list[Record]:
        """End the jobs that *ref* names, and wait until nothing of them is left.

        Args:
            ref: The request's `uuid`.
            by: Who wishes it; the jobs' clients are told.

        Returns:
            Those that were cancelled, as they ended. One that ended by itself in that
            moment is not among them.
        """
        runs = [r for r in self.runs if r.job.uuid == ref and not r.own and r.status is None]
        for run in runs:
            run.cancel(by)
        for run in runs:
            await run.settled.wait()  # not for the answer: its client may not read it
        works = [run.work for run in runs if run.work is not None]
        if works:
            await asyncio.wait(works)
        return [run.record() for run in runs if run.cancelled]

    async def answered(self, backend: Backend) -> None:
        """Wait until the jobs that have come by *backend* are answered."""
        waiting = [task for task, (_, way) in self._answering.items() if way is backend]
        if waiting:
            await asyncio.wait(waiting)

    async def drain(self, grace: float) -> None:
        """Refuse what is new, let jobs end for *grace* seconds, then end and answer them."""
        self._dispatcher.stopping = True
        if self._answering:
            log.info("waiting up to %g s for %d jobs", grace, len(self.runs))
            await _wait(list(self._answering), grace)
        self._dispatcher.stopped = True
        for run in self.runs:
            run.end("the agent is stopping")
        if self.runs:
            log.warning("ending %d jobs that outlived the grace time", len(self.runs))
        works = [run.work for run in self.runs if run.work is not None]
        late = await _wait(self._answering, LAST_ANSWERS)
        for answer in late:  # large ones, and a bus that is away
            answer.cancel()
        if late:
            log.warning("%d answers could not be delivered before the stop", len(late))
        await _wait(works, LAST_WORKS)

    async def _work(self, run: Run, replies: Replies, backend: Backend, address: str) -> None:
        try:
            status, reason = await run.outcome()
            extra = {"result": run.result()} if run.admission.wishes.result else None
            size = self._limits.chunk_size
            try:
                await self._answer(
                    replies.ended(status, reason, run.output, size, extra), backend, address
                )
            except MessageError as exc:  # a python task's result
                status, reason = run.fail(f"the result is {exc}")
                empty = Collector()
                await self._answer(
                    replies.ended(status, reason, empty, extra=extra), backend, address
                )
        finally:
            self._dispatcher.release(run.admission)
            run.output.discard()
            self.runs.discard(run)
            if run.work is None or run.work.done():
                self._forget(run)
            else:
                self.ending.add(run)
                run.work.add_done_callback(lambda _: self._forget(run))
        self.counts[status.value] += 1
        log.info(
            "task %s for %.80r from %.80r: %s%s, %.3f s",
            run.job.task, run.job.uuid, run.job.src, status, f" ({reason})" if reason else "",
            asyncio.get_running_loop().time() - run.accepted_at,
        )  # fmt: skip

    async def _answer(
        self, responses: AsyncIterator[Response], backend: Backend, address: str
    ) -> None:
        began, sent = time.monotonic(), 0
        async for response in responses:
            payload = encode_response(response)
            if response.chunks > 1 or (backend.shared and len(payload) > LARGE):
                await self._deliver_large(address, payload, backend)
            else:
                backend.deliver(address, payload)
            if response.chunks > 1:
                sent += len(payload)
                ahead = (sent - BURST) / PACE - (time.monotonic() - began)
                if ahead > 0:
                    await asyncio.sleep(ahead)

    async def _deliver_large(self, address: str, payload: bytes, backend: Backend) -> None:
        """One after the other: together they would push other answers out of the queue."""
        turn = self._turns.setdefault(backend, asyncio.Lock()) if backend.shared else nullcontext()
        async with turn:
            backend.deliver(address, payload)
            await backend.flush(address)

    def _forget(self, run: Run) -> None:
        self.ending.discard(run)
        if not run.own:
            self.recent.append(run.record())

    def _answered(self, task: asyncio.Task[None]) -> None:
        del self._answering[task]
        if not task.cancelled() and task.exception() is not None:
            log.critical("a job was not answered: this is a bug", exc_info=task.exception())

    def _note_crowded(self, request: Request, exc: Crowded) -> None:
        self.counts["crowded"] += 1
        self._crowded.warning(
            "request %.80r for %.80r not taken: %s", request.uuid, request.task, exc
        )


async def _wait(
    tasks: Collection[asyncio.Task[None]], seconds: float
) -> Collection[asyncio.Task[None]]:
    """Wait for all of them; those that are late."""
    return (await asyncio.wait(tasks, timeout=seconds))[1] if tasks else ()


def _feedback_channel(request: Request) -> str:
    if not request.feedback_channel:
        raise MessageError("options.feedback_channel: found nothing; expected a channel's name")
    return request.feedback_channel
