"""
Requests and responses by Redis pub/sub.

Two connections: one subscribed to the control channels, one that publishes. The
subscribed one must prove every `PING_INTERVAL` seconds of silence that it still
hears: a PING that can be sent proves nothing, only a PONG that comes back does.

No keys are made but the feedback streams that clients ask for, see `redis_publisher`, and,
if it is wanted, the agent's record, see `redis_presence`.
Pub/sub ignores databases, so none is selected.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import suppress

from redis.asyncio.connection import AbstractConnection
from redis.exceptions import AuthenticationError, RedisError, ResponseError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from ..errors import BackendError
from ..interfaces import BackendState, Delivery, Host
from ..options import Options
from .redis_clock import BusClock
from .redis_presence import presence
from .redis_publisher import Publisher, feedback_options
from .redis_server import ELSEWHERE, RedisServer, pause
from .redis_topology import slot_of, tag_of

PING_INTERVAL = 10.0  # seconds of silence until the server is asked
PONG_TIMEOUT = 4.0  # seconds for its answer; with the interval less than 15
STOP_TIMEOUT = 1.0  # seconds for an attempt to connect to end by itself
CLOSE_TIMEOUT = 2.0  # seconds for the last responses to leave
LARGE = 1024 * 1024  # bytes; a message beyond this is seldom and hardly a request
ECHO = b"." * 2048  # see _Relief
CONTROL_CHANNEL = "ngcp-task-agent-redis"

log = logging.getLogger(__name__)


class RedisBackend:
    """Options: those of `RedisServer`, and

    - ``control_channel``: a channel on which the agent's own tasks are reached, too;
      default `CONTROL_CHANNEL` where no task names a channel
    - ``sharded``: of a cluster; requests are published by SPUBLISH and read at the node
      that has the slot of their channel, and responses leave by SPUBLISH. All control
      channels have the slot of ``control_channel``, default `CONTROL_CHANNEL`
    - ``response_queue``: responses that wait while the server is away, default 10000
    - ``response_queue_size``: their size together, default 64 MiB
    - ``feedback_length``: responses kept in a feedback stream, default about 10000
    - ``feedback_expiry``: how long it is kept after the last one, default 3600 s
    - ``presence``: whether the agent keeps a record of itself there; default no

    A task's ``backend_options``: ``control_channel``, default `CONTROL_CHANNEL`.
    """

    shared = True
    forgets = True

    def __init__(self, options: Options) -> None:
        self._server = RedisServer(options)
        self._own_channel = options.text("control_channel")
        self._sharded = "S" if self._server.sharded else ""  # SSUBSCRIBE, ssubscribe, smessage
        self._publisher = Publisher(
            self._server,
            options.integer("response_queue", 10_000, minimum=1),
            options.size("response_queue_size", 64 * 1024 * 1024),
            feedback_options(options),
        )
        self._clock = BusClock(self._publisher.time)
        self._presence = presence(options, self._publisher.call, self._server)
        self._publishing: asyncio.Task[None] | None = None
        self._wanted: frozenset[str] = frozenset()
        self._connecting: asyncio.Task[AbstractConnection] | None = None
        self._subscriber: AbstractConnection | None = None
        self._commands: set[asyncio.Task[None]] = set()
        self._asked: frozenset[str] = frozenset()  # channels of the present connection
        self._confirmed: set[str] = set()  # channels that the server has said we hear
        self._unconfirmed = 0
        self._connected = False
        self._connections = 0
        self._stopping = False
        self._heard = 0.0  # loop time of the last sign of life
        self._pong = asyncio.Event()
        self._trouble = ""  # what has been logged last
        self._attempt = 0.0  # loop time of the last attempt to connect
        self.on_change: Callable[[], None] = lambda: None
        self.host: Host | None = None

    def subscription(self, options: Options) -> str:
        anchor = self._own_channel or CONTROL_CHANNEL
        if not self._sharded:
            return options.text("control_channel", CONTROL_CHANNEL)
        channel = options.text("control_channel", anchor)
        if slot_of(channel) != slot_of(anchor):
            options.problem(
                "control_channel",
                f"{channel!r}, in another slot than {anchor!r}; the backend is sharded",
                f"a name that begins with '{{{tag_of(anchor)}}}'",
            )
        return channel

    async def open(self) -> None:
        """Needs nothing: a server that is not there yet is waited for."""

    def listen(self, channels: Iterable[str]) -> None:
        own = {self._own_channel} if self._own_channel else set()
        wanted = frozenset(channels) | own or {CONTROL_CHANNEL}
        added, removed = wanted - self._wanted, self._wanted - wanted
        self._wanted = frozenset(wanted)
        if self._subscriber is not None and self._connected:
            self._command(self._sharded + "SUBSCRIBE", added)
            self._command(self._sharded + "UNSUBSCRIBE", removed)

    async def receive(self) -> AsyncIterator[Delivery]:
        self._publishing = asyncio.create_task(self._publisher.run(), name="redis publisher")
        if self._presence is not None and self.host is not None:
            self._presence.start(self.host)
        failures = 0
        while not self._stopping:
            self._attempt = asyncio.get_running_loop().time()
            try:
                connection = await self._subscribe()
                async for delivery in self._read(connection):
                    yield delivery
                    del delivery  # it may be large, and the next may be long in coming
            except (RedisError, OSError, TimeoutError, BackendError) as exc:
                failures = 1 if await self._lost(exc) else failures + 1
            if not self._stopping:
                await asyncio.sleep(pause(failures))

    def deliver(self, address: str, payload: bytes, stream: str = "") -> None:
        self._publisher.post(address, payload, stream)

    async def flush(self, address: str) -> None:
        await self._publisher.flush()

    async def now(self) -> float:
        return await self._clock.now()

    async def withdraw(self) -> None:
        if self._presence is not None:
            await self._presence.withdraw()

    async def stop(self) -> None:
        await self.withdraw()
        self._stopping = True
        self._connected = False
        if self._connecting is not None:
            # Cancelled amid a failing TLS handshake, uvloop complains of a lost exception.
            await asyncio.wait((self._connecting,), timeout=STOP_TIMEOUT)
        if self._connecting is not None:
            self._connecting.cancel()
        if self._subscriber is not None:
            await self._subscriber.disconnect(nowait=True)

    async def close(self) -> None:
        with suppress(TimeoutError):
            await asyncio.wait_for(self._publisher.flush(), CLOSE_TIMEOUT)
        if self._publisher.waiting:
            log.warning("redis %s: %d responses unsent", self._server, self._publisher.waiting)
        if self._publishing is not None:
            self._publishing.cancel()
            await asyncio.wait((self._publishing,))

    def state(self) -> BackendState:
        now = asyncio.get_running_loop().time()
        limit = 2 * (PING_INTERVAL + PONG_TIMEOUT)
        alive = self._heard if self._connected else self._attempt
        text = f"connected to {self._server}" if self._connected else f"no {self._server}"
        publisher = self._publisher
        return BackendState(
            self._connected, now - alive < limit, f"redis {text}", publisher.dropped,
            self._connections, publisher.waiting, publisher.waiting_bytes,
        )  # fmt: skip

    async def reach(self) -> None:
        """See `interfaces.Reaching`: a PING on the connection that listens."""
        connection = self._subscriber
        if connection is None or not self._connected:
            raise BackendError(f"redis {self._server} is not connected")
        unheard = self._wanted - self._confirmed
        if unheard:
            channels = ", ".join(sorted(unheard))
            raise BackendError(f"redis {self._server} has not subscribed us to {channels}")
        self._pong.clear()
        try:
            await connection.send_command("PING", check_health=False)
        except (RedisError, OSError, TimeoutError) as exc:
            raise BackendError(f"redis {self._server}: {exc}") from exc
        await self._pong.wait()

    async def _subscribe(self) -> AbstractConnection:
        """Connect and ask for the channels; the answers are read among the messages."""
        self._subscriber = connection = await self._connect()
        if self._stopping:
            raise BackendError("stopped meanwhile")
        self._asked = self._wanted
        self._confirmed.clear()
        self._unconfirmed = len(self._asked)
        async with asyncio.timeout(PONG_TIMEOUT):
            for channel in self._asked:
                await connection.send_command(
                    self._sharded + "SUBSCRIBE", channel, check_health=False
                )
        self._heard = asyncio.get_running_loop().time()
        return connection

    async def _connect(self) -> AbstractConnection:
        """A connection; `stop` ends the attempt, and only that."""
        where = min(self._wanted) if self._sharded else ""
        connecting = asyncio.create_task(self._server.connect(where), name="redis connect")
        self._connecting = connecting
        try:
            await asyncio.wait((connecting,), timeout=2 * PONG_TIMEOUT)
        finally:
            connecting.cancel()
            self._connecting = None
        await asyncio.wait((connecting,))
        if connecting.cancelled():
            raise TimeoutError
        return connecting.result()

    def _note_confirmation(self) -> None:
        """One more channel is answered; after the last one the backend is connected."""
        self._unconfirmed -= 1
        if self._unconfirmed:
            return
        if not self._connected:
            self._connections += 1
        self._connected = True
        self._trouble = ""
        channels = ", ".join(sorted(self._asked))
        where = self._server.at(self._subscriber) if self._subscriber else self._server
        log.info("redis %s: connected, listening on %s", where, channels)
        if self._presence is not None:
            self._presence.refresh()
        self.on_change()
        if self._asked != self._wanted:  # changed meanwhile
            self._command(self._sharded + "SUBSCRIBE", self._wanted - self._asked)
            self._command(self._sharded + "UNSUBSCRIBE", self._asked - self._wanted)

    def _note_refusal(self, exc: ResponseError) -> None:
        # This channel is not for us; the others are.
        log.error("redis %s: a subscription is refused: %s", self._server, exc)
        self._note_confirmation()

    async def _read(self, connection: AbstractConnection) -> AsyncIterator[Delivery]:
        now = asyncio.get_running_loop().time
        local = self._server.local
        relief = _Relief()
        heartbeat = asyncio.create_task(self._heartbeat(connection), name="redis heartbeat")
        try:
            while True:
                try:
                    message = await connection.read_response(disconnect_on_error=False)
                except ELSEWHERE as exc:
                    self._server.follow(exc, connection)
                    raise
                except ResponseError as exc:
                    self._note_refusal(exc)
                    continue
                self._heard = now()
                if message[0] in (b"message", b"smessage"):
                    yield Delivery(message[2], message[1].decode("utf-8", "replace"), local)
                    relief.alone = False
                    if len(message[2]) > LARGE:
                        relief.needed = True
                        await connection.send_command("PING", ECHO, check_health=False)
                elif message[0] in (b"subscribe", b"ssubscribe"):
                    self._confirmed.add(message[1].decode("utf-8", "replace"))
                    self._note_confirmation()
                elif message[0] == b"unsubscribe":
                    self._confirmed.discard(message[1].decode("utf-8", "replace"))
                elif message[0] == b"sunsubscribe" and message[1].decode() in self._wanted:
                    moved = RedisConnectionError("the slot of the control channels has moved")
                    self._server.follow(moved, connection)
                    raise moved
                elif message[0] == b"pong":
                    self._pong.set()
                    if relief.needed:
                        await connection.send_command(*relief.after(message), check_health=False)
        finally:
            heartbeat.cancel()

    async def _heartbeat(self, connection: AbstractConnection) -> None:
        now = asyncio.get_running_loop().time
        try:
            while True:
                await asyncio.sleep(self._heard + PING_INTERVAL - now())
                if now() - self._heard >= PING_INTERVAL:
                    self._pong.clear()
                    await connection.send_command("PING", check_health=False)
                    await asyncio.wait_for(self._pong.wait(), PONG_TIMEOUT)
        except (RedisError, OSError, TimeoutError):
            # Both connections go the same way; `_read` sees the end of this one.
            await self._publisher.disconnect()
            await connection.disconnect(nowait=True)

    async def _lost(self, exc: Exception) -> bool:
        """Drop the connection, and say so once; whether there was one."""
        was_connected, self._connected = self._connected, False
        if self._subscriber is not None:
            with suppress(RedisError, OSError, TimeoutError):
                await self._subscriber.disconnect(nowait=True)
            self._subscriber = None
        if self._stopping:
            return was_connected
        trouble = " ".join(str(exc).split()) or "no answer in time"
        away = isinstance(exc, OSError | TimeoutError | RedisConnectionError | RedisTimeoutError)
        kind = "away" if away and not isinstance(exc, AuthenticationError) else trouble
        if was_connected or kind != self._trouble:  # said once, not at each attempt
            what = "connection lost" if was_connected else "not reached"
            log.warning("redis %s: %s (%s); trying again", self._server, what, trouble)
            self._trouble = kind
            self.on_change()
        return was_connected

    def _command(self, name: str, channels: Iterable[str]) -> None:
        connection, words = self._subscriber, sorted(channels)
        if words and connection is not None:
            task = asyncio.ensure_future(_send(connection, name, words))
            self._commands.add(task)
            task.add_done_callback(self._commands.discard)


class _Relief:
    """Makes hiredis give back a buffer that has grown for a large message.

    It does so when it is fed while it holds nothing that has been read, and it
    forgets what has been read from 1 KiB on. So the server is asked for an echo
    longer than that, then for one more answer, and again if a message came between.

    Attributes:
        needed: Whether the buffer is still large.
        alone: Whether no message has come since the echo.
    """

    def __init__(self) -> None:
        self.needed = False
        self.alone = False

    def after(self, pong: list[bytes]) -> tuple[str | bytes, ...]:
        """What to ask next."""
        if pong[1]:
            self.alone = True
            return ("PING",)
        self.needed = not self.alone
        return ("PING", ECHO) if self.needed else ("PING",)


async def _send(connection: AbstractConnection, name: str, words: list[str]) -> None:
    with suppress(RedisError, OSError):  # the reader notices it, too
        for word in words:
            await connection.send_command(name, word, check_health=False)
