"""
Responses out: a bounded queue, one connection, many responses at once.

Keys made: the feedback streams that clients name (`options.feedback_stream`), each with
a limit to its length and an expiry.
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import math
import socket
import sys
import termios
from collections import deque
from collections.abc import Collection, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

from redis.asyncio import Redis
from redis.asyncio.cluster import RedisCluster
from redis.asyncio.connection import AbstractConnection
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError, ResponseError

from ..errors import BackendError
from ..feedback import is_feedback_key
from ..options import Options
from .redis_server import ELSEWHERE, RedisServer, pause

BATCH_MESSAGES = 500
BATCH_BYTES = 1024 * 1024
REPLY_TIMEOUT = 10.0  # seconds for one batch to be taken and answered
FEEDBACK_LENGTH = 10_000  # responses kept in a feedback stream, about
FEEDBACK_EXPIRY = 3600  # seconds that it is kept after the last response
DOORBELL = "1"  # published where nobody but the stream hears a response

# One step: what is refused must not begin to expire. Whoever may send a request chooses
# the key, so that it could be anybody's; one that does not expire is no feedback stream.
APPEND = """
if redis.call('TTL', KEYS[1]) == -1 then
  -- A stream that nothing was ever added to is what a client's XGROUP CREATE MKSTREAM makes;
  -- an empty one that has had entries is somebody's queue.
  local stat = redis.call('XINFO', 'STREAM', KEYS[1])
  local added
  for i = 1, #stat, 2 do if stat[i] == 'entries-added' then added = stat[i + 1] end end
  if added ~= 0 then
    return redis.error_reply('NOTFEEDBACK the key exists and does not expire')
  end
  for _, group in ipairs(redis.call('XINFO', 'GROUPS', KEYS[1])) do
    if string.find(group[2], '^node:') or string.find(group[2], '^pool:') then
      return redis.error_reply('NOTFEEDBACK agents read requests there')
    end
  end
end
local id = redis.call('XADD', KEYS[1], 'MAXLEN', '~', ARGV[1], '*', 'response', ARGV[3])
redis.call('EXPIRE', KEYS[1], ARGV[2])
return id
"""

_Word = str | bytes | int

log = logging.getLogger(__name__)


class _Message(NamedTuple):
    channel: str
    payload: bytes
    stream: str = ""


class _Question(NamedTuple):
    words: tuple[_Word, ...]
    answer: asyncio.Future[Any]


class Feedback(NamedTuple):
    """How much a feedback stream keeps.

    Attributes:
        length: Responses, about; the oldest are trimmed.
        expiry: Seconds after the last response until all of it is gone.
    """

    length: int = FEEDBACK_LENGTH
    expiry: int = FEEDBACK_EXPIRY


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
        feedback: How much is kept in a stream.

    Attributes:
        dropped: Messages lost since the start.
        control_streams: Keys that nobody's responses are appended to.
    """

    def __init__(
        self,
        server: RedisServer,
        max_messages: int,
        max_bytes: int,
        feedback: Feedback = Feedback(),  # noqa: B008 (it cannot be changed)
    ) -> None:
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
        self._shards: Redis | RedisCluster | None = None  # of a cluster
        self._feedback = feedback
        self._questions: list[_Question] = []
        self._unkept = 0  # responses that could not be put into their stream
        self.dropped = 0
        self.control_streams: Collection[str] = ()

    @property
    def waiting(self) -> int:
        """Messages not yet sent."""
        return self._posted - self._settled

    @property
    def waiting_bytes(self) -> int:
        """Their size together, without those that are on their way."""
        return self._bytes

    def post(self, channel: str, payload: bytes, stream: str = "") -> None:
        """Put a message at the end of the queue.

        Args:
            channel: Where it is published; empty for a stream alone, on whose name the
                `DOORBELL` is published then.
            payload: The message.
            stream: Where it is appended before; empty for nowhere.
        """
        if stream and not is_feedback_key(stream, self.control_streams):
            self._note_unkept(stream, "no key for a feedback stream")
            if not channel:
                self._note_lost(stream, "it has no other way")
                return
            stream = ""
        self._queue.append(_Message(channel, payload, stream))
        self._bytes += len(payload)
        self._posted += 1
        while len(self._queue) > self._max_messages or (
            self._bytes > self._max_bytes and len(self._queue) > 1
        ):
            self._drop(self._queue.popleft(), "the response queue is full")
        self._wake()

    async def time(self) -> tuple[int, int]:
        """The server's clock, asked between two batches.

        Returns:
            Unix seconds, and microseconds. It takes as long as connecting takes: the
            caller sets a limit.

        Raises:
            BackendError: The connection broke, or the server refuses.
        """
        reply = await self._ask("TIME")
        seconds, microseconds = next(iter(reply.values())) if isinstance(reply, dict) else reply
        return int(seconds), int(microseconds)

    async def call(self, script: str, keys: Sequence[str], words: Sequence[Any]) -> Any:
        """Run a script, between two batches, by a connection that there is anyway.

        Args:
            script: Lua.
            keys: At least one; all in one slot.
            words: The script's other arguments.

        Returns:
            Its reply, undecoded. The caller sets a limit to the time.

        Raises:
            BackendError: The connection broke, or the server refuses.
        """
        command = ("EVAL", script, len(keys), *keys, *words)
        if not self._server.is_cluster:
            return await self._ask(*command)
        try:  # beside the batches: they must not wait for a shard that is away
            return await self._cluster().execute_command(*command)
        except (RedisError, OSError, TimeoutError, RuntimeError) as exc:
            raise BackendError(f"redis {self._server}: {exc}") from exc

    async def _ask(self, *words: _Word) -> Any:
        question = _Question(words, asyncio.get_running_loop().create_future())
        self._questions.append(question)
        self._wake()
        return await question.answer

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
            await self._learn_shards()
            while True:
                if not self._queue and not self._questions:
                    self._wakeup = asyncio.get_running_loop().create_future()
                    await self._wakeup
                self._batch = self._take_batch()
                try:
                    await self._send()
                    failures = 0
                except (RedisError, OSError, TimeoutError, BackendError) as exc:
                    self._put_back()
                    self._answer(exc, len(self._questions))
                    await self.disconnect()
                    failures += 1
                    log.debug("redis %s: publishing failed: %s", self._server, exc)
                    if failures > 1:  # the first may be a connection that was long closed
                        await asyncio.sleep(pause(failures - 1))
        finally:
            await self.disconnect()

    async def _learn_shards(self) -> None:
        """Find out who has which slots: that takes longer than clients wait for an answer."""
        if self._server.is_cluster:
            with suppress(RedisError, OSError, TimeoutError):
                async with asyncio.timeout(REPLY_TIMEOUT):
                    await self._cluster().initialize()
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise asyncio.CancelledError  # the library may have swallowed it

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
        """Send the batch; what the server has confirmed is taken out of it."""
        if self._server.is_cluster:
            await self._keep_in_shards()
        if self._server.sharded:
            await self._send_to_shards()
        else:
            await self._send_to_server()

    async def _keep_in_shards(self) -> None:
        """Append to feedback streams, each at the node that has its slot."""
        if not any(message.stream for message in self._batch):
            return
        pipeline = self._cluster().pipeline(transaction=False)
        waiting = [message for message in self._batch if message.stream]
        for message in waiting:
            pipeline.execute_command(*self._commands(message)[0])
        async with asyncio.timeout(REPLY_TIMEOUT):
            replies = await pipeline.execute(raise_on_error=False)
        answers = iter(replies)
        trouble: Exception | None = None
        batch, self._batch = self._batch, deque()
        for message in batch:
            reply = next(answers) if message.stream else None
            channel, payload, stream = message
            refused = isinstance(reply, ResponseError) and not isinstance(reply, ELSEWHERE)
            if isinstance(reply, Exception) and not refused:
                trouble = trouble or reply
                self._batch.append(message)
            elif refused and not channel:
                self._note_unkept(stream, str(reply))
                self._drop(message, "refused by the server")
            else:
                if refused:
                    self._note_unkept(stream, str(reply))
                bell = _Message(stream, DOORBELL.encode())
                self._batch.append(_Message(channel, payload) if channel else bell)
        if trouble is not None:
            raise trouble

    async def _send_to_shards(self) -> None:
        """Each to the node that has its slot; the order of each channel is kept."""
        while self._questions:
            self._answer(await self._cluster().execute_command(*self._questions[0].words))
        if not self._batch:
            return
        pipeline = self._cluster().pipeline(transaction=False)
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

    def _cluster(self) -> Any:
        if self._shards is None:
            self._shards = self._server.commands(REPLY_TIMEOUT)
        return self._shards

    async def _send_to_server(self) -> None:
        connection = self._connection
        try:
            async with asyncio.timeout(REPLY_TIMEOUT):
                if connection is None:
                    connection = self._connection = await self._server.connect()
                asked = len(self._questions)  # more may come while we wait for the replies
                commands = [question.words for question in self._questions]
                for message in self._batch:
                    commands += self._commands(message)
                await connection.send_packed_command(
                    connection.pack_commands(commands), check_health=False
                )
                for _ in range(asked):
                    self._answer(await _reply_to_question(connection))
                while self._batch:
                    await self._confirm(connection, self._batch[0])
                    self._batch.popleft()
        except TimeoutError:
            if self._connection is not None and _has_arrived(self._connection):
                self._settle_unconfirmed()
            raise

    def _commands(self, message: _Message) -> list[tuple[_Word, ...]]:
        channel, payload, stream = message
        if not stream:
            return [("PUBLISH", channel, payload)]
        length, expiry = self._feedback
        return [
            ("EVAL", APPEND, 1, stream, length, expiry, payload),
            ("PUBLISH", channel, payload) if channel else ("PUBLISH", stream, DOORBELL),
        ]

    async def _confirm(self, connection: AbstractConnection, message: _Message) -> None:
        """Read all that the server says of *message*; heard or kept, it is not lost."""
        kept = await _reply(connection) if message.stream else None
        published = await _reply(connection)
        if isinstance(kept, ResponseError):
            self._note_unkept(message.stream, str(kept))
        heard = bool(message.channel) and not isinstance(published, ResponseError)
        if heard or (message.stream and not isinstance(kept, ResponseError)):
            self._settle(1)
        else:
            self._drop(message, "refused by the server")

    def _answer(self, reply: Any, count: int = 1) -> None:
        """Tell those who have asked first."""
        questions = self._questions[:count]
        del self._questions[:count]
        for _, answer in questions:
            if answer.done():  # its time is over
                continue
            if isinstance(reply, Exception):
                answer.set_exception(BackendError(f"redis {self._server}: {reply}"))
            else:
                answer.set_result(reply)

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
        self._note_lost(message.channel or message.stream, why)
        self._settle(1)

    def _note_lost(self, address: str, why: str) -> None:
        self.dropped += 1
        if _worth_a_line(self.dropped):
            log.warning(
                "redis %s: a response to %.80r is lost, %s; %d so far",
                self._server, address, why, self.dropped,
            )  # fmt: skip

    def _note_unkept(self, stream: str, why: str) -> None:
        self._unkept += 1
        if _worth_a_line(self._unkept):
            log.warning(
                "redis %s: a response is not appended to %.80r: %s; %d so far",
                self._server, stream, why, self._unkept,
            )  # fmt: skip

    def _wake(self) -> None:
        if self._wakeup is not None and not self._wakeup.done():
            self._wakeup.set_result(None)

    def _settle(self, count: int) -> None:
        self._settled += count
        while self._flushers and self._flushers[0][0] <= self._settled:
            _, done = self._flushers.pop(0)
            if not done.done():
                done.set_result(None)


def feedback_options(options: Options) -> Feedback:
    """Read how much a feedback stream keeps."""
    return Feedback(
        options.integer("feedback_length", FEEDBACK_LENGTH, minimum=1),
        math.ceil(options.seconds("feedback_expiry", float(FEEDBACK_EXPIRY))),
    )


async def _reply(connection: AbstractConnection) -> Any:
    """The next reply; a refusal as the error that it is."""
    try:
        return await connection.read_response()
    except (RedisConnectionError, *ELSEWHERE):
        raise
    except ResponseError as exc:
        log.debug("redis: refused: %s", exc)
        return exc


async def _reply_to_question(connection: AbstractConnection) -> Any:
    """The next reply; what it says of the server is for who has asked, not for the batch."""
    try:
        return await connection.read_response()
    except RedisConnectionError:
        raise
    except ResponseError as exc:
        return exc


def _worth_a_line(count: int) -> bool:
    return count & (count - 1) == 0  # 1, 2, 4, 8, … lines in a flood


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
