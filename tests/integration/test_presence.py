"""Presence on a real server: when a record is written, what it holds, and when it is gone."""

import asyncio
import logging
import time
from contextlib import AsyncExitStack, asynccontextmanager
from itertools import pairwise

import pytest

from ngcp_task_agent.backends import redis_presence
from ngcp_task_agent.backends.redis import RedisBackend
from ngcp_task_agent.backends.redis_link import RedisLink
from ngcp_task_agent.backends.redis_presence import EXPIRY, INDEX
from ngcp_task_agent.backends.redis_stream import RedisStreamBackend
from ngcp_task_agent.client import AsyncClient
from ngcp_task_agent.destination import Node
from ngcp_task_agent.presence import Fact, NodeRecord, encode_record

from .backends import connected, disconnected
from .jobs import made
from .redis_fleet import Nodes, running
from .test_redis_cluster import RULES
from .waiting import until

pytestmark = pytest.mark.redis

both = pytest.mark.parametrize("kind", [RedisBackend, RedisStreamBackend])


class Teller:
    """A host that tells what a test says."""

    def __init__(self, instance="m1", name="db01", **facts):
        self.identity = instance
        self.name = name
        self.facts = {key: Fact(frozenset(values.split()), 1.0) for key, values in facts.items()}
        self.told = 0

    def node(self):
        return Node(self.name)

    def room(self, control_channel):
        return 1

    def record(self):
        self.told += 1
        return encode_record(NodeRecord(self.name, self.identity, facts=self.facts, uptime=50.0))[0]


@asynccontextmanager
async def agent(server, kind=RedisBackend, host=None, **fields):
    """A backend that keeps presence, unless told otherwise."""
    fields = {"unix_socket": str(server.path), "presence": True, **fields}
    backend = made(kind, {key: value for key, value in fields.items() if value is not None})
    backend.host = host or Teller()
    backend.listen({"control"})
    await backend.open()
    receiving = asyncio.create_task(_drain(backend))
    try:
        yield backend
    finally:
        await backend.stop()
        receiving.cancel()
        await asyncio.wait((receiving,))
        await backend.close()


async def _drain(backend):
    async for _ in backend.receive():
        pass


def client_of(server):
    return AsyncClient.redis({"unix_socket": str(server.path)}, src="web01")


async def present(server):
    async with client_of(server) as client:
        return await client.nodes()


async def names(server):
    return [record.name for record in await present(server)]


async def keys(server):
    """All that begins as the agents' own keys do, without those of streams."""
    return sorted(await server.call("KEYS", "*presence*"))


async def written(server, instance="m1"):
    return await server.call("HGET", f"{INDEX}:{instance}", "written")


async def killed(server, backend):
    """The agent is gone without a word; its backend may be stopped later."""
    backend._presence._keeping.cancel()
    backend._presence._keeping = None


@both
async def test_nothing_is_written_where_it_is_off(server, kind):
    """Off is the default, and the word for it."""
    async with agent(server, kind, presence=None) as one, agent(server, kind, presence=False):
        await connected(one)
        await asyncio.sleep(0.1)  # in which nothing may happen

        assert await keys(server) == []


@both
async def test_an_agent_that_is_connected_is_there(server, kind):
    """With what it tells of itself, and when it was started by the bus's clock."""
    async with agent(server, kind, Teller(state="active", role="proxy lb")):
        await until(lambda: present(server), 5, "a record")
        [record] = await present(server)
        left = await server.call("PTTL", f"{INDEX}:m1"), await server.call("PTTL", INDEX)
        kept = await keys(server)

    assert (record.name, record.instance, record.near) == ("db01", "m1", True)
    assert record.node.facts == {"state": {"active"}, "role": {"proxy", "lb"}}
    assert 0 <= record.seen < 5
    assert record.facts["state"].age == 1.0 + record.seen
    assert 49 < time.time() - record.started < 56
    assert all(EXPIRY * 1000 - 5000 < ms <= EXPIRY * 1000 for ms in left)
    assert kept == [INDEX.encode(), f"{INDEX}:m1".encode()]


@both
async def test_at_an_orderly_stop_it_is_deleted(server, kind):
    """Nobody waits for who has said good-bye."""
    async with agent(server, kind):
        await until(lambda: present(server), 5, "a record")

    assert await keys(server) == []


@both
async def test_who_withdraws_is_gone_and_goes_on_working(server, kind):
    """It takes no more requests, but it still answers those it has."""
    async with agent(server, kind) as backend, server.listener("fb") as heard:
        await until(lambda: present(server), 5, "a record")
        await backend.withdraw()

        assert await keys(server) == []
        backend._presence.refresh()  # it has reconnected meanwhile
        backend.deliver("fb", b"answer")
        await until(lambda: heard, 5)
        assert await keys(server) == []


async def test_two_nodes_of_one_name_are_two(server):
    """A name is nobody's own."""
    async with agent(server, host=Teller("m1")), agent(server, host=Teller("m2")):
        await until(lambda: _count(server, 2), 5, "two records")
        records = await present(server)

    assert [(record.name, record.instance) for record in records] == [
        ("db01", "m1"),
        ("db01", "m2"),
    ]


async def _count(server, number):
    return len(await present(server)) == number


@both
async def test_after_a_restart_of_the_server_it_is_there_again(make_server, kind):
    """At once: the server has lost it, and the next turn may be far."""
    server = make_server()
    server.start()
    async with agent(server, kind) as backend:
        await until(lambda: present(server), 5, "a record")
        server.stop()
        await disconnected(backend)
        server.start()

        began = time.monotonic()
        await until(lambda: _count(server, 1), 9, "there again")
        assert backend._presence.writes == 2
        assert time.monotonic() - began < redis_presence.EVERY - 1


async def test_it_is_written_seldom(server, monkeypatch):
    """Every so many seconds, not more often, and for as long as the agent is there."""
    monkeypatch.setattr(redis_presence, "EVERY", 0.4)
    monkeypatch.setattr(redis_presence, "SPREAD", 0.0)
    stamps = set()

    async def note():
        stamps.add(await written(server))
        return len(stamps - {None}) >= 4

    async with agent(server):
        await until(note, 8, "four records")

    times = sorted(map(int, stamps - {None}))  # ms
    assert all(b - a >= 390 for a, b in pairwise(times)), times


async def test_connections_that_come_and_go_do_not_mean_a_record_each(server):
    """A load balancer that hangs up all the time must not make the fleet write all the time."""
    async with agent(server) as backend:
        await until(lambda: present(server), 5, "a record")
        for _ in range(3):
            await server.kill_subscriber()
            await until(lambda: backend.state().connected, 8)
        await asyncio.sleep(0.2)

        assert backend._presence.writes == 2  # one in its turn, and one more


async def test_who_is_gone_without_a_word_expires(server, monkeypatch):
    """And the next who writes tidies up."""
    monkeypatch.setattr(redis_presence, "EXPIRY", 1)
    async with agent(server) as dead:
        await until(lambda: present(server), 5, "a record")
        await killed(server, dead)
        await until(lambda: _count(server, 0), 5, "expired")
        await until(lambda: _gone(server), 5, "the index, too")
        monkeypatch.setattr(redis_presence, "EXPIRY", 30)
        await server.call("ZADD", INDEX, "1", "long-gone")
        async with agent(server, host=Teller("m2")):
            await until(lambda: _count(server, 1), 5, "the other")

            assert await server.call("ZRANGE", INDEX, 0, -1) == [b"m2"]


async def _gone(server):
    return await keys(server) == []


async def test_no_hosts_clock_makes_it_older_or_younger(server, monkeypatch):
    """An hour ahead or behind, on the agent's host and on the client's."""
    right = time.time
    for hours in (-1, 1):
        monkeypatch.setattr(time, "time", lambda hours=hours: right() + 3600 * hours)
        async with agent(server, host=Teller(state="active")):
            await until(lambda: present(server), 5, "a record")
            [record] = await present(server)

        assert 0 <= record.seen < 5
        assert 49 < right() - record.started < 56
        assert record.node.facts == {"state": {"active"}}


async def test_a_copied_machine_is_told(server, caplog):
    """Two with the same machine-id would share a record, and each would seem to come and go."""
    async with agent(server) as one, agent(server, host=Teller(name="copy")) as other:
        await until(lambda: one._presence.writes and other._presence.writes, 5)
        for backend in (one, other, one, other):
            backend._presence._refreshed = float("-inf")  # long ago
            backend._presence.refresh()
            writes = backend._presence.writes
            await until(lambda b=backend, w=writes: b._presence.writes > w, 5)

    told = [one.getMessage() for one in caplog.records if "somebody else" in one.getMessage()]
    assert len(told) == 2  # each says it once
    assert "machine-id" in told[0]


async def test_the_record_of_a_successor_stays(server):
    """The one who stops late deletes its own, and no other."""
    async with AsyncExitStack() as stack:
        old = await stack.enter_async_context(agent(server))
        await until(lambda: old._presence.writes, 5)
        async with agent(server, host=Teller(name="new")) as new:
            await until(lambda: new._presence.writes, 5)
            await old.withdraw()

            assert await names(server) == ["new"]


async def test_without_the_right_to_it_the_agent_works(server, caplog):
    """It is told, and not with every turn."""
    rights = ["on", ">secret", "~*", "&*", "+@all", "-eval"]
    await server.call("ACL", "SETUSER", "agent", *rights)
    login = {"username": "agent", "password": "secret"}
    async with agent(server, **login) as backend, server.listener("fb") as heard:
        await connected(backend)
        backend.deliver("fb", b"answer")
        await until(lambda: heard, 5)
        await until(lambda: "presence is not kept" in caplog.text, 5, "told")

        assert "permission" in caplog.text
        assert await keys(server) == []


async def test_a_record_that_cannot_be_made_is_told_and_tried_again(server, monkeypatch, caplog):
    """Facts may come from somebody else's plug-in."""
    monkeypatch.setattr(redis_presence, "EVERY", 0.2)
    host = Teller()
    right, host.record = host.record, lambda: 1 / 0
    async with agent(server, host=host) as backend:
        await until(lambda: "cannot be made" in caplog.text, 5)
        await asyncio.sleep(0.5)  # some turns
        assert caplog.text.count("cannot be made") == 1
        host.record = right

        await until(lambda: backend._presence.writes, 5, "a record")


async def test_what_is_no_record_is_passed_over(server, caplog):
    """One that somebody has broken must not hide the others."""
    caplog.set_level(logging.WARNING)
    async with agent(server):
        await until(lambda: present(server), 5, "a record")
        await server.call("HSET", f"{INDEX}:m2", "record", "{}", "written", "1")
        await server.call("HSET", f"{INDEX}:m3", "record", "{}", "written", "soon")
        await server.call("SET", f"{INDEX}:m4", "{}")
        for member in ("m2", "m3", "m4", "m5"):
            await server.call("ZADD", INDEX, "9999999999999", member)

        assert await names(server) == ["db01"]
        assert await names(server) == ["db01"]  # no reply is left over
    for member in ("m2", "m3", "m4"):
        assert caplog.text.count(f"presence of '{member}': ") == 2


async def test_each_who_asks_is_told_what_was_asked(server):
    """Scripts go between responses on one connection, and no reply is another's."""
    async with agent(server, presence=None) as backend, server.listener("fb") as heard:
        await connected(backend)

        async def call(number):
            backend.deliver("fb", b"%d" % number)
            reply = await backend._publisher.call("return ARGV[1]", ["k"], [number])
            return int(reply)

        replies = await asyncio.gather(*map(call, range(300)), *[backend.now() for _ in range(3)])
        await until(lambda: len(heard) == 300, 8)

    assert replies[:300] == list(range(300))
    assert all(abs(now - time.time()) < 5 for now in replies[300:])
    assert sorted(map(int, heard)) == list(range(300))


@pytest.mark.parametrize("sharded", [False, True])
async def test_in_a_cluster_it_is_one_place(place, sharded):
    """Wherever agents and clients are connected; with the rules that are shipped."""
    rules = place / "users.acl"
    rules.write_text("".join((RULES / name).read_text() for name in ("agent.acl", "client.acl")))
    async with running(Nodes("redis-server", place, "--aclfile", rules)) as fleet:
        login = {**fleet.options, "sharded": sharded, "password": "CHANGE-ME"}
        async with AsyncExitStack() as stack:
            for number in range(3):
                backend = made(RedisBackend, {**login, "username": "ngcp-task-agent",
                                              "presence": True})  # fmt: skip
                stack.push_async_callback(backend.close)
                stack.push_async_callback(backend.stop)
                backend.host = Teller(f"m{number}", "near")
                backend.listen({"ngcp-task-agent-redis"})
                task = asyncio.create_task(_drain(backend))
                stack.push_async_callback(asyncio.wait, (task,))
                stack.callback(task.cancel)
            client = AsyncClient(RedisLink({**login, "username": "ngcp-task-client"}))
            stack.push_async_callback(client.close)

            await until(lambda: _all_there(client, 3), 10, "three records")
            assert [one.instance for one in await client.nodes()] == ["m0", "m1", "m2"]
            assert not any(one.near for one in await client.nodes())


async def _all_there(client, number):
    return len(await client.nodes()) == number
