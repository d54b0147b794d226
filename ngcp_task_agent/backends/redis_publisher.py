"""
Responses out: a bounded queue, one connection, many responses at once.
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import socket
import sys
import termios
from collections import deque
from contextlib import suppress
from typing import NamedTuple

from redis.asyncio import Redis
from redis.asyncio.cluster import RedisCluster
from redis.asyncio.connection import AbstractConnection
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError, ResponseError

from ..errors import BackendError
from .redis_server import ELSEWHERE, RedisServer, pause

BATCH_MESSAGES = 500
BATCH_BYTES = 1024 * 1024
REPLY_TIMEOUT = 10.0  # seconds for one batch to be taken and answered

log = logging.getLogger(__name__)


class _Message(NamedTuple):
    channel: str
    payload: bytes


class Publisher:
    """Publishes in the order given.

    A message counts as sent once the server has said so. What a broken connection
    leaves unconfirmed is sent again, with the same `uuid`: rather twice, in that narrow
    moment, than never. What a server that hangs has got, but not confirmed, is not.

    Args:
        server: Where to.
        max_messages: How many may wait.
        max_bytes: How large they may be together. The oldest make room: their
            clients have waited longest and are the likeliest to have gone.
    """

    def __init__(self, server: RedisServer, max_messages: int, max_bytes: int) -> None:
        self._server = server
        self._max_messages = max_messages
        self._max_bytes = max_bytes
        self._queue: deque[_Message] = deque()
        self._batch: deque[_Message] = deque()  # on its way
        self._bytes = 0
        self._posted = 0  # messages ever taken
        self._settled = 0  # messages ever sent or dropped
        self._wakeup: asyncio.Future[None] | None = None
        self._flushers: list[tuple[int, asyncio.Future[None]]] = []
        self._connection: AbstractConnection | None = None
        self._shards: Redis | RedisCluster | None = None  # of a cluster whose channels are sharded
        self.dropped = 0

    @property
    def waiting(self) -> int:
        """Messages not yet sent."""
        return self._posted - self._settled

    def post(self, channel: str, payload: bytes) -> None:
        """Put a message at the end of the queue."""
        self._queue.append(_Message(channel, payload))
        self._bytes += len(payload)
        self._posted += 1
        while len(self._queue) > self._max_messages or (
            self._bytes > self._max_bytes and len(self._queue) > 1
        ):
            self._drop(self._queue.popleft(), "the response queue is full")
        if self._wakeup is not None and not self._wakeup.done():
            self._wakeup.set_result(None)

    async def flush(self) -> None:
        """Wait until all that has been posted so far is sent, or dropped."""
        if self.waiting:
            done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._flushers.append((self._posted, done))
            await done

    async def run(self) -> None:
        """Send until cancelled."""
        failures = 0
        try:
            while True:
                if not self._queue:
                    self._wakeup = asyncio.get_running_loop().create_future()
                    await self._wakeup
                self._batch = self._take_batch()
                try:
                    await self._send()
                    failures = 0
                except (RedisError, OSError, TimeoutError, BackendError) as exc:
                    self._put_back()
                    await self.disconnect()
                    failures += 1
                    log.debug("redis %s: publishing failed: %s", self._server, exc)
                    if failures > 1:  # the first may be a connection that was long closed
                        await asyncio.sleep(pause(failures - 1))
        finally:
            await self.disconnect()

    async def disconnect(self) -> None:
        """Drop the connection; the next message makes a new one."""
        shards, self._shards = self._shards, None
        if shards is not None:
            with suppress(RedisError, OSError, TimeoutError):
                await shards.aclose()
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(RedisError, OSError, TimeoutError):
                await connection.disconnect(nowait=True)

    async def _send(self) -> None:
        """Publish the batch; what the server has confirmed is taken out of it."""
        if self._server.sharded:
            await self._send_to_shards()
        else:
            await self._send_to_server()

    async def _send_to_shards(self) -> None:
        """Each to the node that has its slot; the order of each channel is kept."""
        if self._shards is None:
            self._shards = self._server.commands(REPLY_TIMEOUT)
        pipeline = self._shards.pipeline(transaction=False)
        for message in self._batch:
            pipeline.execute_command("SPUBLISH", message.channel, message.payload)
        async with asyncio.timeout(REPLY_TIMEOUT):
            replies = await pipeline.execute(raise_on_error=False)
        unsent: list[tuple[_Message, Exception]] = []
        for message, reply in zip(self._batch, replies, strict=True):
            refused = isinstance(reply, ResponseError) and not isinstance(reply, ELSEWHERE)
            if isinstance(reply, Exception) and not refused:
                unsent.append((message, reply))
            elif refused:
                self._drop(message, "refused by the server")
            else:
                self._settle(1)
        self._batch = deque(message for message, _ in unsent)
        if unsent:
            raise unsent[0][1]

    async def _send_to_server(self) -> None:
        connection = self._connection
        try:
            async with asyncio.timeout(REPLY_TIMEOUT):
                if connection is None:
                    connection = self._connection = await self._server.connect()
                commands = [("PUBLISH", m.channel, m.payload) for m in self._batch]
                await connection.send_packed_command(
                    connection.pack_commands(commands), check_health=False
                )
                while self._batch:
                    accepted = await _accepted(connection)
                    message = self._batch.popleft()
                    if accepted:
                        self._settle(1)
                    else:
                        self._drop(message, "refused by the server")
        except TimeoutError:
            if self._connection is not None and _has_arrived(self._connection):
                self._settle_unconfirmed()
            raise

    def _settle_unconfirmed(self) -> None:
        # The server's host has all of it, and a server that only hangs will read it.
        # Sent again, each client would get its answer twice.
        log.warning(
            "redis %s: no confirmation for %d responses within %g s",
            self._server, len(self._batch), REPLY_TIMEOUT,
        )  # fmt: skip
        self._settle(len(self._batch))
        self._batch.clear()

    def _take_batch(self) -> deque[_Message]:
        batch: deque[_Message] = deque()
        size = 0
        while self._queue and len(batch) < BATCH_MESSAGES and size < BATCH_BYTES:
            message = self._queue.popleft()
            size += len(message.payload)
            batch.append(message)
        self._bytes -= size
        return batch

    def _put_back(self) -> None:
        self._bytes += sum(len(message.payload) for message in self._batch)
        self._queue.extendleft(reversed(self._batch))
        self._batch.clear()

    def _drop(self, message: _Message, why: str) -> None:
        if why.endswith("full"):
            self._bytes -= len(message.payload)
        self.dropped += 1
        if self.dropped & (self.dropped - 1) == 0:  # 1, 2, 4, 8, … lines in a flood
            log.warning(
                "redis %s: a response to %.80r is lost, %s; %d so far",
                self._server, message.channel, why, self.dropped,
            )  # fmt: skip
        self._settle(1)

    def _settle(self, count: int) -> None:
        self._settled += count
        while self._flushers and self._flushers[0][0] <= self._settled:
            _, done = self._flushers.pop(0)
            if not done.done():
                done.set_result(None)


async def _accepted(connection: AbstractConnection) -> bool:
    try:
        await connection.read_response()
    except (RedisConnectionError, *ELSEWHERE):
        raise
    except ResponseError as exc:
        log.debug("redis: PUBLISH refused: %s", exc)
        return False
    return True


def _has_arrived(connection: AbstractConnection) -> bool:
    """Whether the other host has acknowledged every byte; a UNIX socket has no other host."""
    writer = getattr(connection, "_writer", None)
    sock = writer.get_extra_info("socket") if writer is not None else None
    if writer is None or sock is None or writer.transport.get_write_buffer_size():
        return False
    if sock.family == socket.AF_UNIX:
        return True
    unacknowledged = fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, b"\0" * 4)
    return int.from_bytes(unacknowledged, sys.byteorder) == 0
