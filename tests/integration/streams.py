"""What tests of the stream backend need: hosts, agents that hold claims, and a look at the keys."""

import asyncio
from contextlib import asynccontextmanager

from ngcp_task_agent.backends import redis_stream_group
from ngcp_task_agent.backends.redis_stream import RedisStreamBackend
from ngcp_task_agent.backends.redis_stream_keys import Keys
from ngcp_task_agent.destination import Node

from .jobs import made
from .waiting import until

STREAM = "work"
POOL = "pool:dns work"
KEYS = Keys.of(STREAM)


class StillHost:
    """A host whose node and room a test sets.

    Attributes:
        free: How much more could be started.
        counts: Whether each delivery takes some of that.
    """

    def __init__(self, name="db01", identity="m1", free=1000, counts=False):
        self.identity = identity
        self.name = name
        self.facts = {}
        self.free = free
        self.counts = counts

    def node(self):
        return Node(self.name, (), self.facts)

    def room(self, control_channel):
        return self.free


def stream_backend(host=None, **fields):
    """A backend that serves *host*."""
    backend = made(RedisStreamBackend, fields)
    backend.host = host or StillHost()
    return backend


class Worker:
    """A backend and what it has received.

    Attributes:
        deliveries: In order.
        lost: Claims that somebody else has taken over.
    """

    def __init__(self, backend):
        self.backend = backend
        self.deliveries = []
        self.lost = []

    @property
    def payloads(self):
        return [delivery.payload for delivery in self.deliveries]

    async def receive(self):
        async for delivery in self.backend.receive():
            self.deliveries.append(delivery)
            self.backend.host.free -= self.backend.host.counts
            delivery.claim.on_lost = lambda claim=delivery.claim: self.lost.append(claim)

    async def claims(self, count, seconds=8.0):
        """The claims of the first *count* deliveries, waited for."""
        await until(lambda: len(self.deliveries) >= count, seconds, f"{count} deliveries")
        return [delivery.claim for delivery in self.deliveries]


@asynccontextmanager
async def working(server, host=None, channels=(STREAM,), **fields):
    """A worker on *server*; ended at the end as the agent does it."""
    worker = Worker(stream_backend(host, **({"unix_socket": str(server.path)} | fields)))
    async with serving(worker, channels):
        yield worker


@asynccontextmanager
async def serving(worker, channels=(STREAM,)):
    """*worker*, receiving."""
    worker.backend.listen(channels)
    await worker.backend.open()
    receiving = asyncio.create_task(worker.receive())
    try:
        yield worker
    finally:
        await worker.backend.stop()
        try:
            await asyncio.wait_for(receiving, 5)
        finally:
            await worker.backend.close()


async def killed(worker):
    """End a worker as SIGKILL does: nothing is given back, nothing is said any more."""
    tasks = list(worker.backend._tasks)
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    worker.backend._readers.clear()
    worker.backend._groups.clear()
    await worker.backend._calls.close()


async def post(server, *payloads, stream=STREAM):
    """What any client does; the ids."""
    async with server.client() as client:
        return [await client.xadd(stream, {"request": payload}) for payload in payloads]


async def pending(server, group="pool:dns", stream=STREAM):
    """Id to consumer and count, of what is not acknowledged."""
    async with server.client() as client:
        found = await client.xpending_range(stream, group, "-", "+", 1000)
    return {one["message_id"]: (one["consumer"], one["times_delivered"]) for one in found}


async def length(server, key=STREAM):
    return await server.call("XLEN", key)


def earlier_process(monkeypatch):
    """From now on this is a new process of the same agents."""
    monkeypatch.setattr(redis_stream_group, "PROCESS", redis_stream_group.PROCESS + "n")


def quick(monkeypatch, lease=1.0):
    """Leases and looks of a tenth, so that what takes seconds is tested in tenths."""
    from ngcp_task_agent.backends import redis_stream

    monkeypatch.setattr(redis_stream_group, "LEASE", lease)
    monkeypatch.setattr(redis_stream, "RENEW_EVERY", lease / 4)
    monkeypatch.setattr(redis_stream_group, "BLOCK", lease * 0.3)
    monkeypatch.setattr(redis_stream_group, "BLOCK_BUSY", lease * 0.1)
    monkeypatch.setattr(redis_stream_group, "TRIM_EVERY", lease * 0.3)
    monkeypatch.setattr(redis_stream_group, "NO_ROOM", lease * 0.1)
    monkeypatch.setattr(redis_stream_group, "NO_MEMBER", lease * 0.1)
