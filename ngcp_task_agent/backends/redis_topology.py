"""
Which of several Redis servers to talk to: the master that sentinels name, or the nodes
of a cluster. Knows nothing of logins, TLS and channels: it is handed a way to dial.
"""

from __future__ import annotations

import random
import re
from asyncio import timeout
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import Any, NamedTuple

from redis.asyncio.connection import AbstractConnection
from redis.asyncio.sentinel import MasterNotFoundError, Sentinel
from redis.crc import key_slot
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError

from ..options import Options

NODE_TIMEOUT = 2.0  # seconds for one server of several; the next may answer at once
_ADDRESS = re.compile(r"(?:\[(?P<v6>[0-9a-fA-F:.%]+)\]|(?P<host>[^\s:\[\]@/]+)):(?P<port>\d{1,5})")


class Address(NamedTuple):
    """Where a server listens."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


Dial = Callable[[Address], Awaitable[AbstractConnection]]


def addresses(options: Options, key: str) -> list[Address]:
    """Read a list of ``HOST:PORT``; what is none is noted as a mistake."""
    found = []
    for number, text in enumerate(options.names(key)):
        match = _ADDRESS.fullmatch(text)
        if match and 0 < int(match["port"]) < 65536:
            found.append(Address(match["v6"] or match["host"], int(match["port"])))
        else:
            options.problem(f"{key}.{number}", repr(text), "HOST:PORT, such as 192.0.2.1:26379")
    if key in options and not options.fields[key]:
        options.problem(key, "an empty list", "a list of HOST:PORT")
    return found


def slot_of(channel: str) -> int:
    """The hash slot of a channel or key, from 0 to 16383.

    https://redis.io/docs/latest/operate/oss_and_stack/reference/cluster-spec/#key-distribution-model

    >>> slot_of("foo"), slot_of("{foo}.bar")
    (12182, 12182)
    """
    return key_slot(channel.encode())


def tag_of(channel: str) -> str:
    """What is hashed of it: a name that begins with this in braces has the same slot.

    >>> tag_of("foo"), tag_of("{foo}.bar"), tag_of("{}foo")
    ('foo', 'foo', '{}foo')
    """
    match = re.search(r"\{([^}]*)\}", channel)
    return match[1] if match and match[1] else channel


class Sentinels:
    """A master that others watch, and replace when it fails.

    Args:
        watchers: The sentinels.
        master: The name they know it by.
        kwargs: How they are reached and logged in to: arguments of `redis.asyncio.Redis`.
    """

    def __init__(self, watchers: list[Address], master: str, kwargs: Mapping[str, Any]) -> None:
        self._watchers = watchers
        self.master = master
        self._kwargs = kwargs

    def __str__(self) -> str:
        return f"master {self.master} of sentinels {', '.join(map(str, self._watchers))}"

    def manager(self, **kwargs: Any) -> Sentinel:
        """The library's object that asks the sentinels, and can make clients.

        Args:
            kwargs: For connections to the master.
        """
        # Not always the same first: one that was cut off itself still names the old master.
        watchers = random.sample(self._watchers, len(self._watchers))
        keywords = dict(self._kwargs)
        return _Sentinel(watchers, sentinel_kwargs=keywords, **kwargs)  # type: ignore[no-untyped-call]

    async def connect(self, dial: Dial) -> AbstractConnection:
        """Connect to the master.

        Raises:
            RedisError: No sentinel knows it, or what it names is none.
        """
        host, port = await self.manager().discover_master(self.master)
        address = Address(host, port)
        connection = await dial(address)
        try:
            role = await ask(connection, "ROLE")
            if role[0] != b"master":
                raise RedisConnectionError(f"{address} is a {role[0].decode()}, no master")
        except BaseException:
            await hang_up(connection)
            raise
        return connection


class _Sentinel(Sentinel):
    """Keeps no connections between two questions: they may lie days apart.

    The library's own way of asking says what went wrong with all its arguments, of which
    one is the password.
    """

    _asking = 0  # how many do so now; they share the connections

    async def discover_master(self, service_name: str) -> tuple[str, int]:
        self._asking += 1
        try:
            return await self._ask_all(service_name)
        finally:
            self._asking -= 1
            if not self._asking:
                await self._hang_up()

    async def _hang_up(self) -> None:
        for watcher in self.sentinels:
            with suppress(RedisError, OSError, TimeoutError):
                await watcher.connection_pool.disconnect(inuse_connections=False)

    async def _ask_all(self, service_name: str) -> tuple[str, int]:
        said = []
        for watcher in self.sentinels:
            where = watcher.connection_pool.connection_kwargs
            try:
                masters: Any = await watcher.sentinel_masters()
                state = masters.get(service_name)
                if state and self.check_master_state(state, service_name):
                    return state["ip"], state["port"]
                why = "knows none that is up" if state else "does not know it"
            except (RedisError, OSError, TimeoutError) as exc:
                why = " ".join(str(exc).split()) or "no answer in time"
            said.append(f"{Address(where['host'], where['port'])}: {why}")
        raise MasterNotFoundError(f"no master {service_name!r} found; {'; '.join(said)}")


class Cluster:
    """Nodes that share the slots, and pass on to each other what is published.

    Args:
        seeds: Those to begin with; the others are learned from them.
    """

    def __init__(self, seeds: list[Address]) -> None:
        self.seeds = seeds
        self._learned: frozenset[Address] = frozenset()
        self._silent: set[Address] = set()  # did not answer when last tried
        self._first: Address | None = None

    def __str__(self) -> str:
        return f"cluster {', '.join(map(str, self.seeds))}"

    def ask_first(self, address: Address) -> None:
        """Next time begin with this node: it knows best where a slot has gone."""
        self._first = address

    async def connect(self, dial: Dial, slot: int | None = None) -> AbstractConnection:
        """Connect to the owner of *slot*, or to any node that is joined to the others.

        Raises:
            RedisError, OSError, TimeoutError: No node answers, or the owner does not.
        """
        trouble: Exception = RedisConnectionError("no node is known")
        spare: AbstractConnection | None = None
        if not self._learned and slot is None:
            await self._learn(dial)
        try:
            for address in self._candidates():
                try:
                    connection, joined, owners = await self._look(dial, address)
                except (RedisError, OSError, TimeoutError) as exc:
                    trouble = exc
                    continue
                if slot is not None:
                    return await self._owner(dial, connection, address, owners, slot)
                if joined:
                    return connection
                # It may be the one that is cut off. Where all say so, the cluster waits
                # for a replica to take over, and carries what is published none the less.
                if spare is not None:
                    await hang_up(spare)
                spare = connection
        except BaseException:
            if spare is not None:
                await hang_up(spare)
            raise
        if spare is None:
            raise trouble
        return spare

    async def _learn(self, dial: Dial) -> None:
        """Ask a seed for the others, or the whole fleet would stay at the seeds."""
        for address in self._candidates():
            with suppress(RedisError, OSError, TimeoutError):
                connection, *_ = await self._look(dial, address)
                await hang_up(connection)
                return

    def _candidates(self) -> list[Address]:
        """All nodes, in an order that spreads the fleet over them."""
        nodes = list({*self.seeds, *self._learned})
        random.shuffle(nodes)
        nodes.sort(key=self._silent.__contains__)
        first, self._first = self._first, None
        return nodes if first is None else [first, *(node for node in nodes if node != first)]

    async def _look(
        self, dial: Dial, address: Address
    ) -> tuple[AbstractConnection, bool, list[tuple[int, int, Address]]]:
        """Connect to a node; whether it is joined to the others, and who owns which slots."""
        self._silent.add(address)
        connection = None
        try:
            async with timeout(NODE_TIMEOUT):
                connection = await dial(address)
                state = await ask(connection, "CLUSTER", "INFO")
                ranges = await ask(connection, "CLUSTER", "SLOTS")
        except BaseException:
            if connection is not None:
                await hang_up(connection)
            raise
        self._silent.discard(address)
        nodes = [(one[0], one[1], [_address(n, address) for n in one[2:]]) for one in ranges]
        self._learned = frozenset(node for *_, members in nodes for node in members)
        self._silent &= {*self.seeds, *self._learned}
        owners = [(first, last, members[0]) for first, last, members in nodes]
        return connection, b"cluster_state:ok" in state, owners

    async def _owner(
        self,
        dial: Dial,
        connection: AbstractConnection,
        address: Address,
        owners: list[tuple[int, int, Address]],
        slot: int,
    ) -> AbstractConnection:
        owner = next((node for first, last, node in owners if first <= slot <= last), None)
        if owner == address:
            return connection
        await hang_up(connection)
        if owner is None:
            raise RedisConnectionError(f"nobody has slot {slot}")
        async with timeout(NODE_TIMEOUT):
            return await dial(owner)


def _address(node: list[Any], asked: Address) -> Address:
    """A node in an answer to CLUSTER SLOTS; one that does not know its host is the one asked."""
    host = node[0].decode() if node[0] else ""
    return Address(asked.host if host in ("", "?") else host, int(node[1]))


async def ask(connection: AbstractConnection, *words: str | bytes) -> Any:
    """Send a command and read its reply, undecoded."""
    await connection.send_command(*words, check_health=False)
    return await connection.read_response()


async def hang_up(connection: AbstractConnection) -> None:
    """Close, without waiting for the other side."""
    with suppress(RedisError, OSError, TimeoutError):
        await connection.disconnect(nowait=True)
