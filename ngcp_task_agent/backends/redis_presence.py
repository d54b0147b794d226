"""
Presence: each agent keeps one small record in Redis, so that clients know who is there.

The key map. Both keys are in one slot of a cluster, so that a script may change them in
one step; a fleet of 10,000 means 1,000 small calls a second there.

| key | holds | limit | expiry |
|---|---|---|---|
| `INDEX` | sorted set: an agent's instance by when its record expires (ms) | one member an agent; what has expired is trimmed at each write | `EXPIRY` after the last write |
| `INDEX` + ``:`` + INSTANCE | hash: ``record`` (JSON, see `presence`), ``written`` (ms), ``near``, 1 where Redis is on the agent's host | 64 KiB | `EXPIRY` |

Why an index: KEYS stops the server, and SCAN walks over every key that anybody has, in
a cluster on every shard, to find a few. The sorted set is read at once, costs each write
some microseconds, and needs nobody who cleans up: a member that outlives its record for
a moment finds nothing, and is passed over.

All times are Redis's own: no node's clock makes a record younger or older. An instance
is the agent's identity, not its name, which two nodes may share.
"""  # noqa: E501

from __future__ import annotations

import asyncio
import logging
import math
import random
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

from redis.asyncio.connection import AbstractConnection
from redis.exceptions import NoPermissionError, RedisError, ResponseError

from ..errors import BackendError
from ..feedback import OWN_KEYS
from ..interfaces import Host
from ..options import Options
from .redis_server import ELSEWHERE, RedisServer
from .redis_topology import ask

INDEX = OWN_KEYS + "presence:{fleet}"
EXPIRY = 30  # seconds; a node that is gone without a word is seen for so long
EVERY = 10.0  # seconds between two records at least
SPREAD = 1.0  # seconds more, at random: a fleet that has reconnected at once spreads out
AGAIN = 0.5  # seconds after the first failure, which may be a connection long closed
LONGEST = 3600.0  # seconds; a wait without an end is one of many
TIMEOUT = 5.0  # seconds for a record to be taken
WITHDRAW = 1.0  # seconds for it to be deleted at a stop
PAGE = 500  # records asked for at once

# Deleting and writing tell whose record it was: two agents of one identity are a mistake
# (a virtual machine that was copied with its machine-id), and would share a record.
WRITE = """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local stamp = string.format('%.0f', now)
local before = redis.call('HGET', KEYS[2], 'written')
redis.call('HSET', KEYS[2], 'record', ARGV[2], 'near', ARGV[3], 'written', stamp)
redis.call('EXPIRE', KEYS[2], ARGV[4])
redis.call('ZADD', KEYS[1], string.format('%.0f', now + ARGV[4] * 1000), ARGV[1])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', stamp)
redis.call('EXPIRE', KEYS[1], ARGV[4])
return {stamp, before or ''}
"""
DELETE = """
if ARGV[2] ~= '' and redis.call('HGET', KEYS[2], 'written') ~= ARGV[2] then return 0 end
redis.call('DEL', KEYS[2])
return redis.call('ZREM', KEYS[1], ARGV[1])
"""
TROUBLES = (RedisError, OSError, TimeoutError, BackendError)

# A script, its keys and its words; what it has returned.
Call = Callable[[str, Sequence[str], Sequence[Any]], Awaitable[Any]]

log = logging.getLogger(__name__)


class Presence:
    """Keeps one agent's record.

    Args:
        call: Runs a script at the server; raises one of `TROUBLES`.
        near: Whether the server is on this host.
        server: Its name, for the log.

    Attributes:
        writes: How often the record was written, for tests and counters.
    """

    def __init__(self, call: Call, near: bool, server: object) -> None:
        self._call = call
        self._near = near
        self._server = server
        self._host: Host | None = None
        self._keeping: asyncio.Task[None] | None = None
        self._wakeup = asyncio.Event()
        self._over = False
        self._stamp = ""  # of our last record; empty where that is not certain
        self._tried = False  # whether there may be a record
        self._refusals = 0
        self._warned = False
        self._broken = False
        self._refreshed = -math.inf  # loop time of the last record that `refresh` has caused
        self.writes = 0

    def start(self, host: Host) -> None:
        """Begin to keep the record of *host*; it is written when `refresh` is called."""
        if not self._over:
            self._host = host
            self._keeping = asyncio.create_task(self._keep(host), name="redis presence")

    def refresh(self) -> None:
        """The server is reached again, and may have lost the record."""
        self._wakeup.set()

    async def withdraw(self) -> None:
        """Keep it no longer, and delete it: the agent takes no more requests."""
        self._over = True
        self._wakeup.set()
        keeping, self._keeping = self._keeping, None
        if keeping is None or self._host is None:
            return
        with suppress(*TROUBLES):
            async with asyncio.timeout(WITHDRAW):
                await asyncio.wait((keeping,))  # what is on its way would come back to life
                if self._tried:
                    instance = self._host.identity
                    await self._call(DELETE, _keys(instance), [instance, self._stamp])
        keeping.cancel()
        await asyncio.wait((keeping,))

    async def _keep(self, host: Host) -> None:
        wait = math.inf  # until the server is reached for the first time
        while True:
            await self._due(wait)
            if self._over:
                return
            wait = await self._write(host, wait != AGAIN)

    async def _due(self, wait: float) -> None:
        """Return after *wait* seconds, on `refresh`, or at the end."""
        now = asyncio.get_running_loop().time
        end = now() + wait
        while not self._over and now() < end:
            with suppress(TimeoutError):
                async with asyncio.timeout(min(end - now(), LONGEST)):
                    await self._wakeup.wait()
            woken = self._wakeup.is_set()
            self._wakeup.clear()
            if woken and wait == math.inf:
                return
            # Connections that come and go mean one record more in that time, not one each.
            if woken and now() >= self._refreshed + EVERY:
                self._refreshed = now()
                return

    async def _write(self, host: Host, again: bool) -> float:
        """Write the record; seconds until the next."""
        instance = host.identity
        try:
            record = host.record()
        except Exception:
            # Facts come from anybody's plug-in; the next reading may be a better one.
            if not self._broken:
                log.exception("redis %s: presence: the record cannot be made", self._server)
            self._broken = True
            return EVERY
        self._broken = False
        self._tried = True
        try:
            async with asyncio.timeout(TIMEOUT):
                words = [instance, record, int(self._near), EXPIRY]
                stamp, before = await self._call(WRITE, _keys(instance), words)
        except TROUBLES as exc:
            self._stamp = ""
            self._note_refusal(exc)
            return AGAIN if again else EVERY + random.uniform(0, SPREAD)
        self._refusals = 0
        self.writes += 1
        self._note_others(instance, before.decode())
        self._stamp = stamp.decode()
        return EVERY + random.uniform(0, SPREAD)

    def _note_others(self, instance: str, before: str) -> None:
        if before and self._stamp and before != self._stamp and not self._warned:
            self._warned = True
            log.error(
                "redis %s: presence: somebody else keeps a record as %s: a copied machine with "
                "the same /etc/machine-id and state_dir, or two backends on one server",
                self._server, instance,
            )  # fmt: skip

    def _note_refusal(self, exc: BaseException) -> None:
        self._refusals += 1
        if self._refusals > 1 and self._refusals & (self._refusals - 1) == 0:  # 2, 4, 8, …
            log.warning(
                "redis %s: presence is not kept: %s",
                self._server, " ".join(str(exc).split()) or "no answer in time",
            )  # fmt: skip


def presence(options: Options, call: Call, server: RedisServer) -> Presence | None:
    """Read ``presence``: whether a record is kept; if not, nothing is written."""
    return Presence(call, server.local, server) if options.flag("presence") else None


class Kept(NamedTuple):
    """A record as it was found.

    Attributes:
        instance: Whose.
        record: JSON, see `presence`.
        near: Whether Redis is on that agent's host.
        seen: Seconds since it was written.
        now: What time it is by Redis's clock, in unix seconds.
    """

    instance: str
    record: bytes
    near: bool
    seen: float
    now: float


async def read_present(connection: AbstractConnection) -> list[Kept]:
    """Every record that has not expired.

    Args:
        connection: To the server that has `INDEX`.

    Raises:
        RedisError, OSError, TimeoutError: It cannot be read.
    """
    seconds, microseconds = await ask(connection, "TIME")
    now = int(seconds) + int(microseconds) / 1e6
    members = await ask(connection, "ZRANGEBYSCORE", INDEX, f"({int(now * 1000)}", "+inf")
    found = []
    for start in range(0, len(members), PAGE):
        page = members[start : start + PAGE]
        keys = [_keys(member.decode("utf-8", "replace"))[1] for member in page]
        commands = [("HMGET", key, "record", "near", "written") for key in keys]
        await connection.send_packed_command(connection.pack_commands(commands), check_health=False)
        for member in page:
            record, near, written = await _fields(connection)
            if record is not None:
                moment = int(written) / 1000 if (written or b"").isdigit() else 0.0
                seen = max(0.0, now - moment)
                found.append(
                    Kept(member.decode("utf-8", "replace"), record, near == b"1", seen, now)
                )
    return found


async def _fields(connection: AbstractConnection) -> Any:
    """The next reply; one key of another kind must not hide the other nodes."""
    try:
        return await connection.read_response()
    except (NoPermissionError, *ELSEWHERE):
        raise
    except ResponseError as exc:
        return str(exc).encode(), None, None  # no record, as its reader will say


def _keys(instance: str) -> list[str]:
    return [INDEX, f"{INDEX}:{instance}"]
