"""
Commands to the server that keeps the streams: few at a time, and until they work.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

from redis.exceptions import (
    AuthenticationError,
    ClusterDownError,
    NoPermissionError,
    NoScriptError,
    ReadOnlyError,
    RedisError,
    ResponseError,
)
from redis.exceptions import ConnectionError as RedisConnectionError

from ..errors import BackendError
from .redis_connection import gone
from .redis_server import RedisServer, pause
from .redis_stream_scripts import Script
from .redis_topology import slot_of

AT_ONCE = 8  # scripts on their way
REPLY_TIMEOUT = 4.0  # seconds for an answer, beside the time that was asked for
TRIES = 5  # of what is refused for good, as far as anybody can tell
AWAY = (RedisConnectionError, ReadOnlyError, ClusterDownError)  # which may be said in words
TROUBLES = (RedisError, OSError, TimeoutError, BackendError)

Word = str | bytes | int | float

log = logging.getLogger(__name__)


class Refused(BackendError):
    """The server has refused it each time; a right is missing, or a key is of another kind."""


class Entry(NamedTuple):
    """One entry of a stream; the last of several fields with one name counts."""

    id: str
    fields: dict[bytes, bytes]


class Calls:
    """What is asked of one server.

    Attributes:
        connected: Whether the server has answered last time.
        on_change: Called when that has changed.
        given_up: What was refused for good since the start.
        connections: How often it was found to answer after it had not.
        buried: Requests put among the dead letters since the start.
    """

    def __init__(self, server: RedisServer) -> None:
        self._server = server
        self._client: Any = None  # of either kind; their common methods have no common type
        self._places = asyncio.Semaphore(AT_ONCE)
        self._closed = False
        self._trouble = ""  # what has been logged last
        self._refusals = 0
        self.connected = False
        self.given_up = 0
        self.connections = 0
        self.buried = 0
        self.on_change: Callable[[], None] = lambda: None

    async def call(self, script: Script, keys: Sequence[str], *words: Word) -> Any:
        """Run *script* once.

        Raises:
            RedisError, OSError, TimeoutError, BackendError: It may have run, or not.
        """
        async with self._places:
            try:
                return await self._execute("EVALSHA", script.sha, len(keys), *keys, *words)
            except NoScriptError:
                return await self._execute("EVAL", script.text, len(keys), *keys, *words)

    async def run(self, script: str, keys: Sequence[str], words: Sequence[Word]) -> Any:
        """Run a text that is no `Script`, once; it raises the same."""
        async with self._places:
            return await self._execute("EVAL", script, len(keys), *keys, *words)

    async def insist(
        self, script: Script, keys: Sequence[str], *words: Word, tries: int = TRIES
    ) -> Any:
        """Run *script* until the server has answered; it knows itself if it runs again.

        Args:
            tries: How often it may be refused for good.

        Raises:
            Refused: It was, that often in a row.
            BackendError: It was closed before.
        """
        refusals = 0
        failures = 0
        while True:
            try:
                return await self.call(script, keys, *words)
            except TROUBLES as exc:
                failures += 1
                if self._closed:
                    raise BackendError(f"redis {self._server}: closed") from exc
                refusals = refusals + 1 if _for_good(exc) else 0
                if refusals >= tries:
                    raise Refused(f"redis {self._server}: {exc}") from exc
                self.failed(exc)
                await asyncio.sleep(pause(failures))

    def give_up(self, what: str, why: Exception) -> None:
        """*what* is not tried any more: said, and counted."""
        self.given_up += 1
        log.error("%s is given up: %s; %d such so far", what, why, self.given_up)

    async def read(
        self, stream: str, group: str, consumer: str, count: int, block: float
    ) -> list[Entry]:
        """New entries for *consumer*; waits at most *block* seconds for the first."""
        where = ("GROUP", group, consumer, "COUNT", count, "BLOCK", max(1, int(block * 1000)))
        async with asyncio.timeout(block + REPLY_TIMEOUT):
            reply = await self._execute("XREADGROUP", *where, "STREAMS", stream, ">")
        if not reply:
            return []
        # RESP3 answers with a mapping, and then with one more list around the entries.
        found = next(iter(reply.values()))[0] if isinstance(reply, dict) else reply[0][1]
        return [entry_of(one) for one in found]

    async def time(self) -> float:
        """Redis `TIME`, in unix seconds."""
        reply = await self._execute("TIME")
        if isinstance(reply, dict):  # of a cluster: by node
            reply = next(iter(reply.values()))
        seconds, microseconds = reply
        return int(seconds) + int(microseconds) / 1e6

    def elsewhere(self, key: str, stream: str) -> bool:
        """Whether the two are in different slots, and one script cannot reach both."""
        return self._server.is_cluster and slot_of(key) != slot_of(stream)

    def worked(self) -> None:
        """The server answers."""
        if not self.connected:
            self.connected = True
            self.connections += 1
            self._trouble = ""
            log.info("redis %s: connected", self._server)
            self.on_change()

    def failed(self, exc: BaseException) -> None:
        """It does not: said once, and again when the reason changes."""
        if self._closed:
            return
        trouble = " ".join(str(exc).split()) or "no answer in time"
        if isinstance(exc, ResponseError) and not isinstance(exc, AWAY):
            self._note_refusal(trouble)
            return
        kind = type(exc).__name__
        if self.connected or kind != self._trouble:
            what = "connection lost" if self.connected else "not reached"
            log.warning("redis %s: %s (%s); trying again", self._server, what, trouble)
        changed, self.connected, self._trouble = self.connected, False, kind
        if changed:
            self.on_change()

    def _note_refusal(self, trouble: str) -> None:
        # It answers, but not as it should: a right is missing, or memory.
        self._refusals += 1
        if self._refusals & (self._refusals - 1) == 0:  # 1, 2, 4, 8, … lines in a flood
            log.error("redis %s: refused: %s; %d such so far",
                      self._server, trouble, self._refusals)  # fmt: skip

    def end(self) -> None:
        """Nobody insists any more."""
        self._closed = True

    async def close(self) -> None:
        """Disconnect."""
        self._closed = True
        client, self._client = self._client, None
        if client is not None:
            with suppress(RedisError, OSError, TimeoutError):
                await client.aclose()

    async def _execute(self, *words: Word) -> Any:
        if self._client is None:
            if self._closed:
                raise BackendError("closed")
            self._client = self._server.commands(None)  # reads block; limits are set here
        client = self._client
        limit = None if words[0] == "XREADGROUP" else REPLY_TIMEOUT
        try:
            async with asyncio.timeout(limit):
                return await client.execute_command(*words)
        except RuntimeError as exc:  # clients of several servers make their connections themselves
            raise gone(exc) from exc
        except AuthenticationError:
            # The password may have been changed: the next client reads the file again.
            if self._client is client:
                self._client = None
                await client.aclose()
            raise


def _for_good(exc: BaseException) -> bool:
    # In a script all but the first are plain errors, told by their words.
    return isinstance(exc, NoPermissionError) or (
        isinstance(exc, ResponseError)
        and ("WRONGTYPE" in str(exc) or "executing the script can't" in str(exc))
    )


def entry_of(reply: Any) -> Entry:
    """Read one entry: its id and its fields, as a mapping or one after the other."""
    id, fields = reply
    if not isinstance(fields, dict):
        fields = dict(zip(fields[::2], fields[1::2], strict=True)) if fields else {}
    return Entry(id.decode() if isinstance(id, bytes) else str(id), fields)
