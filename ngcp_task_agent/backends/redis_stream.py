"""
Durable requests on Redis streams, read with consumer groups.

What is in Redis is told in `redis_stream_keys`. A request is taken with a lease that is
renewed while its job runs; it is acknowledged in the same step that hands its last
response to Redis. Responses of other kinds leave by pub/sub, as with the redis backend.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from contextlib import suppress
from typing import Any

from ..errors import BackendError
from ..feedback import is_feedback_key
from ..interfaces import BackendState, Claim, Delivery, Host
from ..options import Options
from .redis_presence import presence
from .redis_publisher import Publisher, feedback_options
from .redis_server import RedisServer, pause
from .redis_stream_calls import TROUBLES, Calls
from .redis_stream_group import LATE, STUCK, Group, Terms
from .redis_stream_keys import SUBSCRIPTION, Subscription

RENEW_EVERY = 2.5  # seconds between two signs of life; a lease is four of them
CLOSE_TIMEOUT = 2.0  # seconds for the last responses to leave
DAY = 86400.0  # seconds

log = logging.getLogger(__name__)


class RedisStreamBackend:
    """Options: those of `RedisServer`, and

    - ``retention``: seconds that requests on broadcast streams are kept for nodes that
      are away, or new; default a day
    - ``group_expiry``: seconds after which a node that was not seen is forgotten, with
      what waits for it; default seven days
    - ``response_queue``, ``response_queue_size``, ``feedback_length``,
      ``feedback_expiry``, ``presence``: as for the redis backend

    A task's ``backend_options``: ``control_stream``; ``delivery``, ``broadcast`` (the
    default) or ``anycast``; for the latter ``pool`` and ``members``, which nodes join.
    In the backend's own file they are the defaults for tasks that name none of them.
    """

    shared = True

    def __init__(self, options: Options) -> None:
        self._server = RedisServer(options)
        self._retention = options.seconds("retention", DAY, minimum=1)
        self._expiry = options.seconds("group_expiry", 7 * DAY, minimum=1)
        self._feedback = feedback_options(options)
        self._publisher = Publisher(
            self._server,
            options.integer("response_queue", 10_000, minimum=1),
            options.size("response_queue_size", 64 * 1024 * 1024),
            self._feedback,
        )
        self._default = {key: options.fields[key] for key in SUBSCRIPTION if key in options}
        options.mark(*SUBSCRIPTION)
        if self._default:
            Subscription.read(options)  # mistakes are told here, once
        self._calls = Calls(self._server)
        self._calls.on_change = self._note_change
        self._presence = presence(options, self._calls.run, self._server)
        self._said: dict[str, Subscription] = {}  # by file
        self._wanted: frozenset[str] = frozenset()
        self._groups: dict[str, Group] = {}
        self._readers: dict[str, asyncio.Task[None]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._leaving: set[asyncio.Task[None]] = set()  # those that give something back
        self._inbox: asyncio.Queue[tuple[Delivery, Callable[[], None]] | None] = asyncio.Queue()
        self._receiving = False
        self._stopping = False
        self._turned = 0.0  # loop time of the last sign of life that was tried
        self._ahead: float | None = None  # seconds that Redis's clock is ahead of the loop's
        self.on_change: Callable[[], None] = lambda: None
        self.host: Host | None = None

    def subscription(self, options: Options) -> str:
        if not any(key in options for key in SUBSCRIPTION):
            options.fields = {**self._default, **options.fields}
        read = Subscription.read(options)
        self._said[options.file] = read
        for file, other in self._said.items():
            if read.pool and other[:2] == read[:2] and other.members != read.members:
                # A warning: the other file may be about to change in the same step.
                options.note(
                    "members", f"{read.members!r} here and {other.members!r} in {file}",
                    f"the same for all tasks of pool {read.pool!r} on {read.stream!r}: "
                    "one would reject the other's requests",
                )  # fmt: skip
        return str(read)

    async def open(self) -> None:
        """Needs nothing: a server that is not there yet is waited for."""

    def listen(self, channels: Iterable[str]) -> None:
        self._wanted = frozenset(channels)
        streams = {Subscription.parse(text).stream for text in self._wanted}
        self._publisher.control_streams = streams
        if self._receiving and not self._stopping:
            self._read_what_is_wanted()

    async def receive(self) -> AsyncIterator[Delivery]:
        if self._stopping:
            return
        self._receiving = True
        self._spawn(self._publisher.run(), "redis publisher")
        self._spawn(self._renew(), "redis stream leases")
        if self._presence is not None and self.host is not None:
            self._presence.start(self.host)
        self._read_what_is_wanted()
        while (item := await self._inbox.get()) is not None:
            delivery, looked_at = item
            yield delivery
            looked_at()
            del delivery, item  # they may be large, and the next may be long in coming

    def deliver(self, address: str, payload: bytes, stream: str = "") -> None:
        self._publisher.post(address, payload, stream)

    async def flush(self, address: str) -> None:
        await self._publisher.flush()

    async def now(self) -> float:
        loop = asyncio.get_running_loop()
        try:
            now = await self._calls.time()
        except TROUBLES as exc:
            if self._ahead is None:
                raise BackendError(f"redis {self._server}: what time is it? {exc}") from exc
            return loop.time() + self._ahead
        self._ahead = now - loop.time()
        return now

    async def withdraw(self) -> None:
        if self._presence is not None:
            await self._presence.withdraw()

    async def stop(self) -> None:
        if self._stopping:
            return
        self._stopping = True
        await self.withdraw()
        for text in list(self._readers):
            self._retire(text)
        unseen = []
        while not self._inbox.empty():
            item = self._inbox.get_nowait()
            if item is not None and item[0].claim is not None:
                unseen.append(item[0].claim)
        for claim in unseen:
            self._leaving.add(self._spawn(_released(claim), "redis stream release"))
        self._inbox.put_nowait(None)

    async def close(self) -> None:
        with suppress(TimeoutError):
            await asyncio.wait_for(self._publisher.flush(), CLOSE_TIMEOUT)
        if self._publisher.waiting:
            log.warning("redis %s: %d responses unsent", self._server, self._publisher.waiting)
        if self._leaving:
            await asyncio.wait(self._leaving, timeout=CLOSE_TIMEOUT)
        with suppress(*TROUBLES):
            async with asyncio.timeout(CLOSE_TIMEOUT):
                if self._calls.connected:
                    for group in self._groups.values():
                        await group.sweep(leaves=True)
        self._calls.end()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        self._groups.clear()
        await self._calls.close()

    def state(self) -> BackendState:
        now = asyncio.get_running_loop().time()
        reading = [self._groups[text] for text in self._readers]
        turned = min([self._turned, *(group.turned for group in reading)])
        held = sum(len(group.place.held) for group in self._groups.values())
        missing = sum(group.missing for group in self._groups.values())
        connected = self._calls.connected and not self._stopping
        where = f"connected to {self._server}" if connected else f"no {self._server}"
        streams = ", ".join(sorted(self._wanted)) or "nothing"
        text = f"redis stream {where}, reading {streams}, {held} requests held"
        if missing:
            text += f", {missing} groups made again"
        if self._calls.given_up:
            text += f", {self._calls.given_up} requests given up"
        publisher = self._publisher
        return BackendState(
            connected, now - turned < STUCK, text, publisher.dropped, self._calls.connections,
            publisher.waiting, publisher.waiting_bytes, held, self._calls.buried,
        )  # fmt: skip

    async def reach(self) -> None:
        """See `interfaces.Reaching`: the time is asked, and every reader was answered lately."""
        try:
            await self._calls.time()
        except TROUBLES as exc:
            why = " ".join(str(exc).split()) or "no answer in time"
            raise BackendError(f"redis {self._server}: {why}") from exc
        now = asyncio.get_running_loop().time()
        for text in self._readers:
            group = self._groups[text]
            if group.trouble:
                raise BackendError(f"redis {self._server}, reading {text}: {group.trouble}")
            if now - group.turned > LATE:
                raise BackendError(f"redis {self._server}, reading {text}: no answer in time")

    def _note_change(self) -> None:
        if self._presence is not None and self._calls.connected:
            self._presence.refresh()
        self.on_change()

    def _read_what_is_wanted(self) -> None:
        for text in set(self._readers) - self._wanted:
            self._retire(text)
        for text in self._wanted - set(self._readers):
            group = self._groups.get(text) or self._make(text)
            self._groups[text] = group
            self._readers[text] = self._spawn(group.read(), f"redis stream {text}")

    def _make(self, text: str) -> Group:
        assert self.host is not None, "set by the daemon"
        terms = Terms(
            self._retention,
            self._expiry,
            self._publisher.flush,
            lambda delivery, looked_at: self._inbox.put_nowait((delivery, looked_at)),
            self._server.local,
            self._feedback,
            lambda key: is_feedback_key(key, self._publisher.control_streams),
        )
        return Group(Subscription.parse(text), self._calls, self.host, terms)

    def _retire(self, text: str) -> None:
        reader = self._readers.pop(text)
        reader.cancel()
        leaving = self._spawn(_left(reader, self._groups[text]), "redis stream leaving")
        self._leaving.add(leaving)
        leaving.add_done_callback(self._leaving.discard)

    async def _renew(self) -> None:
        loop, failures = asyncio.get_running_loop(), 0
        while True:
            self._turned = loop.time()
            # Each by itself: what is wrong with one stream must not end the leases of others.
            worked = await asyncio.gather(
                self._look_at_clock(), *(self._renewed(group) for group in self._groups.values())
            )
            failures = 0 if any(worked) else failures + 1
            await asyncio.sleep(pause(failures) if failures else RENEW_EVERY)

    async def _look_at_clock(self) -> bool:
        try:
            self._ahead = await self._calls.time() - asyncio.get_running_loop().time()
        except TROUBLES as exc:
            self._calls.failed(exc)
            return False
        self._calls.worked()
        return True

    async def _renewed(self, group: Group) -> bool:
        worked = await group.renew()
        self._turned = asyncio.get_running_loop().time()  # many that hang take their time
        return worked

    def _spawn(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


async def _left(reader: asyncio.Task[None], group: Group) -> None:
    """What a reader was given while it was told to end goes back."""
    await asyncio.wait((reader,))
    with suppress(*TROUBLES):
        await group.sweep()


async def _released(claim: Claim) -> None:
    with suppress(BackendError):
        await claim.release()
