"""A client that costs next to nothing: RESP written by hand on two bare connections.

Where a rate or the agent's own processor time is measured, a client on redis-py would
take the second processor for itself. The round trip, whose floor is redis-py's, does
not use this one.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, cast

import hiredis
import orjson

from .processes import BenchmarkError

FEEDBACK = "benchmark-feedback"
SOURCE = "benchmark"
ANSWER_WITHIN = 20.0  # seconds until a request without its last answer is given up
BATCH = 500  # messages in one write


def request(task: str, dst: str, feedback: str = FEEDBACK) -> tuple[str, bytes]:
    """A new request for *task* on the nodes *dst*: its uuid, and what goes over the wire."""
    ref = str(uuid.uuid4())
    options = {"feedback_channel": feedback}
    fields = {"uuid": ref, "task": task, "src": SOURCE, "dst": dst, "options": options}
    return ref, orjson.dumps(fields)


@dataclass(frozen=True)
class Answer:
    """The last answer to a request, and when it came by `time.perf_counter`."""

    at: float
    message: dict[str, Any]


class Connection(asyncio.Protocol):
    """One connection to Redis; hands each published message to *on_message*."""

    def __init__(self, on_message: Callable[[bytes], None]) -> None:
        self._on_message = on_message
        self._reader = hiredis.Reader()
        self._replies: deque[asyncio.Future[Any]] = deque()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # Not isinstance: uvloop's transports are not asyncio's.
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._reader.feed(data)
        while (reply := self._reader.gets()) is not False:
            if isinstance(reply, list) and reply[0] == b"message":
                self._on_message(reply[2])
            else:
                waiting = self._replies.popleft()
                if not waiting.done():  # whoever asked may have given up
                    waiting.set_result(reply)

    def send(self, commands: Sequence[tuple[Any, ...]]) -> asyncio.Future[Any]:
        """Send *commands* in one write; the future is the reply to the last of them."""
        loop = asyncio.get_running_loop()
        futures = [loop.create_future() for _ in commands]
        self._replies.extend(futures)
        self._transport.write(b"".join(hiredis.pack_command(command) for command in commands))
        return futures[-1]

    def close(self) -> None:
        """Hang up."""
        self._transport.close()


class Client:
    """Publishes requests and collects their answers from the channel `FEEDBACK`.

    Attributes:
        strays: Answers that nobody waited for.
    """

    def __init__(self) -> None:
        self.strays = 0
        self._waiting: dict[str, asyncio.Future[Answer]] = {}

    async def open(self, port: int) -> None:
        """Connect twice and subscribe."""
        loop = asyncio.get_running_loop()
        both = []
        for _ in range(2):
            _, connection = await loop.create_connection(
                lambda: Connection(self._heard), "127.0.0.1", port
            )
            both.append(connection)
        self._publisher, self._subscriber = both
        await self._subscriber.send([(b"SUBSCRIBE", FEEDBACK.encode())])

    def close(self) -> None:
        """Hang up."""
        self._publisher.close()
        self._subscriber.close()

    async def publish(self, channel: str, payloads: Sequence[bytes]) -> int:
        """Publish *payloads* in pipelines; gives how many subscribers the last one reached."""
        name, receivers = channel.encode(), 0
        for start in range(0, len(payloads), BATCH):
            batch = payloads[start : start + BATCH]
            receivers = await self._publisher.send([(b"PUBLISH", name, each) for each in batch])
        return receivers

    async def info(self, section: str) -> str:
        """The section *section* of the server's INFO."""
        reply: bytes = await self._publisher.send([(b"INFO", section.encode())])
        return reply.decode()

    def expect(self, ref: str) -> asyncio.Future[Answer]:
        """The last answer to the request with the uuid *ref*, to be asked before it is sent."""
        self._waiting[ref] = future = asyncio.get_running_loop().create_future()
        return future

    def forget(self, ref: str) -> None:
        """Count an answer to *ref* as a stray from now on."""
        self._waiting.pop(ref, None)

    async def call(self, channel: str, ref: str, payload: bytes) -> Answer:
        """Publish one request and return its last answer.

        Raises:
            BenchmarkError: It is none of `done`, or none came.
        """
        expected = self.expect(ref)
        try:
            async with asyncio.timeout(ANSWER_WITHIN):
                await self.publish(channel, [payload])
                answer = await expected
        except TimeoutError:
            raise BenchmarkError(f"no answer in {ANSWER_WITHIN:g} s to {payload!r}") from None
        if answer.message["status"] != "done":
            raise BenchmarkError(f"not done: {answer.message} for {payload!r}")
        return answer

    def _heard(self, payload: bytes) -> None:
        # Floors send back what they got: a request, or a bare word that is its own name.
        message = orjson.loads(payload) if payload.startswith(b"{") else {"ref": payload.decode()}
        if message.get("status") == "accepted":
            return
        expected = self._waiting.pop(message.get("ref") or message["uuid"], None)
        if expected is None:
            self.strays += 1
        elif not expected.done():
            expected.set_result(Answer(time.perf_counter(), message))


@asynccontextmanager
async def connected(port: int) -> AsyncIterator[Client]:
    """A `Client` for the length of the block."""
    client = Client()
    await client.open(port)
    try:
        yield client
    finally:
        client.close()
