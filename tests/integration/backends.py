"""Backends that receive, as the agent lets them."""

import asyncio
from contextlib import asynccontextmanager

from ngcp_task_agent.backends.local import LocalBackend
from ngcp_task_agent.backends.redis import RedisBackend

from .jobs import made
from .waiting import until

CONTROL = "control"
STOP = 5.0  # seconds for `receive` to end after `stop`


def redis_backend(**fields):
    return made(RedisBackend, fields)


def local_backend(path, **fields):
    return made(LocalBackend, {"path": str(path), **fields})


@asynccontextmanager
async def receiving(backend, *channels):
    """What *backend* receives, as a list that grows; it is stopped and closed at the end."""
    received = []
    backend.listen(channels or (CONTROL,))
    await backend.open()
    task = asyncio.create_task(_receive(backend, received))
    try:
        yield received
    finally:
        await backend.stop()
        try:
            await asyncio.wait_for(task, STOP)
        finally:
            await backend.close()


async def _receive(backend, received):
    async for delivery in backend.receive():
        received.append(delivery)


async def connected(backend, seconds=8.0):
    """Wait until *backend* reaches the other side."""
    await until(lambda: backend.state().connected, seconds, "connected")


async def disconnected(backend, seconds=8.0):
    """Wait until *backend* knows that it does not."""
    await until(lambda: not backend.state().connected, seconds, "known to be away")


@asynccontextmanager
async def client(path):
    """A connection, as a pair of reader and writer."""
    reader, writer = await asyncio.open_unix_connection(path)
    try:
        yield reader, writer
    finally:
        writer.close()
        try:
            await writer.wait_closed()
        except OSError:
            pass


async def _echo(backend, received):
    """Answer each request with itself until cancelled, a later one first."""
    while True:
        await until(lambda: received, 30)
        while received:
            delivery = received.pop()
            backend.deliver(delivery.address, delivery.payload)


@asynccontextmanager
async def answering(backend):
    """*backend*, received from and answered."""
    async with receiving(backend) as received:
        task = asyncio.create_task(_echo(backend, received))
        try:
            yield received
        finally:
            task.cancel()
            await asyncio.wait((task,))
