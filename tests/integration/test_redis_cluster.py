"""The Redis backend and a cluster of six: any node will do, or the one that has the slot."""

import asyncio
import time
from pathlib import Path

import pytest
from redis.asyncio import Redis

from ngcp_task_agent.backends.redis import CONTROL_CHANNEL, RedisBackend
from ngcp_task_agent.backends.redis_link import RedisLink
from ngcp_task_agent.backends.redis_server import RedisServer
from ngcp_task_agent.backends.redis_topology import slot_of
from ngcp_task_agent.options import Options

from .backends import CONTROL, connected, disconnected, receiving, redis_backend
from .redis_fleet import Nodes, load, running
from .waiting import until

pytestmark = pytest.mark.redis

RULES = Path(__file__).parents[2] / "etc" / "redis"
BACK = 10.0  # seconds within which an agent has to be back after its node has died
OTHER = f"{{{CONTROL_CHANNEL}}}.other"  # has the same slot
FAR = ["a", "b", "c", "d", "e", "f"]  # channels whose slots are on all three masters

each_program = pytest.mark.parametrize("binary", ["redis-server", "valkey-server"])


def numbers(received):
    return {int(delivery.payload) for delivery in received}


def commands(fleet):
    options = Options(fleet.options, "backends/redis.yml")
    return RedisServer(options).commands(reply_timeout=2.0)


def node_of(fleet, backend):
    """The node that *backend* listens at."""
    port = backend._subscriber.port
    return next(server for server in fleet.servers if server.port == port)


async def listening_at(fleet, node):
    """A backend that listens at *node*, as chance has it, and knows one node to begin with."""
    for _ in range(60):
        context = receiving(backend := redis_backend(cluster=[str(fleet.masters[0])]))
        received = await context.__aenter__()
        await connected(backend)
        if node_of(fleet, backend) is node:
            return context, backend, received
        await context.__aexit__(None, None, None)
    raise AssertionError("never at that node")


@each_program
async def test_a_broadcast_reaches_agents_at_all_nodes(place, binary):
    """Published anywhere, heard everywhere. Then a master is killed, the only one that was
    named: who was there is back within seconds, at a node that it has learned of, and hears
    all that is posted from then on."""
    async with running(Nodes(binary, place)) as fleet:
        victim = fleet.masters[0]
        context, backend, received = await listening_at(fleet, victim)
        other_context, other, elsewhere = await listening_at(fleet, fleet.replicas[1])
        client = Redis(**fleet.masters[2].kwargs)
        try:
            async with load(client, CONTROL) as posted:
                await until(lambda: len(received) > 10 and len(elsewhere) > 10, 5, "before")
                victim.kill()
                await disconnected(backend)
                began = time.monotonic()
                await connected(backend, BACK)
                back = time.monotonic()
                await until(lambda: len(posted.since(back)) > 50, BACK, "posted after")
                after = posted.since(back)
                await until(lambda: after <= numbers(received), 5, "all that was posted after")
                there = {number for number in posted.sent if number > min(numbers(elsewhere))}
                await until(lambda: there <= numbers(elsewhere), 5, "nothing missed there")
            assert other.state().connected
            assert back - began < BACK
            assert node_of(fleet, backend) is not victim
            await _responses_are_heard(fleet, backend)
        finally:
            await context.__aexit__(None, None, None)
            await other_context.__aexit__(None, None, None)


async def _responses_are_heard(fleet, backend):
    """Anywhere: at a node that the backend does not know."""
    async with Redis(**fleet.replicas[2].kwargs) as client, client.pubsub() as pubsub:
        await pubsub.subscribe("fb")
        assert (await pubsub.get_message(timeout=5))["type"] == "subscribe"
        for number in range(20):
            backend.deliver("fb", str(number).encode())
        heard = [(await pubsub.get_message(timeout=5))["data"] for _ in range(20)]
    assert heard == [str(number).encode() for number in range(20)]


@each_program
async def test_sharded_channels_follow_their_slot(place, binary):
    """Resharding: the subscription goes with the slot at once, and responses to channels
    of any slot find their nodes, in order."""
    async with running(Nodes(binary, place)) as fleet:
        slot = slot_of(CONTROL_CHANNEL)
        source = fleet.owner(slot)
        target = next(master for master in fleet.masters if master is not source)
        backend = redis_backend(**fleet.options, sharded=True)
        async with (
            receiving(backend, CONTROL_CHANNEL, OTHER) as received,
            load(commands(fleet), CONTROL_CHANNEL, "SPUBLISH") as posted,
        ):
            await connected(backend)
            assert node_of(fleet, backend) is source
            await until(lambda: len(received) > 10, 5, "requests before")
            began = time.monotonic()
            await fleet.move(slot, source, target)
            await until(lambda: backend.state().connected and node_of(fleet, backend) is target,
                        BACK, "at the new owner")  # fmt: skip
            back = time.monotonic()
            await until(lambda: len(posted.since(back)) > 50, BACK, "posted after")
            after = posted.since(back)
            await until(lambda: after <= numbers(received), 5, "all that was posted after")
            assert back - began < 3.0
            await asyncio.wait_for(backend.reach(), 2)
            await _each_is_heard_at_home(fleet, backend)


async def _each_is_heard_at_home(fleet, backend):
    assert len({fleet.owner(slot_of(channel)) for channel in FAR}) == 3
    link = RedisLink({**fleet.options, "sharded": True})
    await link.open()
    for channel in FAR:
        await link.subscribe(channel)
        for number in range(20):
            backend.deliver(channel, str(number).encode())
        heard = [await asyncio.wait_for(link.receive(), 5) for _ in range(20)]
        assert heard == [str(number).encode() for number in range(20)]
    await link.close()


async def test_sharded_channels_outlive_their_master(place):
    """Its replica takes over: requests are heard again, and so are responses."""
    async with running(Nodes("redis-server", place)) as fleet:
        victim = fleet.owner(slot_of(CONTROL_CHANNEL))
        options = {**fleet.options, "sharded": True}
        backend = redis_backend(**options)
        async with receiving(backend, CONTROL_CHANNEL) as received:
            await connected(backend)
            assert node_of(fleet, backend) is victim
            victim.kill()
            began = time.monotonic()
            await disconnected(backend)
            await connected(backend, BACK)
            assert time.monotonic() - began < BACK
            link = RedisLink(options)
            await link.open()
            await link.subscribe("fb")
            assert await link.publish(CONTROL_CHANNEL, b"request") == 1
            await until(lambda: received)
            backend.deliver("fb", b"response")
            assert await asyncio.wait_for(link.receive(), 5) == b"response"
            await link.close()


@pytest.mark.parametrize("sharded", [False, True])
async def test_the_shipped_rules_suffice(place, sharded):
    """An agent and a client, each with its own login."""
    rules = place / "users.acl"
    rules.write_text("".join((RULES / name).read_text() for name in ("agent.acl", "client.acl")))
    async with running(Nodes("redis-server", place, "--aclfile", rules)) as fleet:
        login = {**fleet.options, "sharded": sharded, "password": "CHANGE-ME"}
        backend = redis_backend(**login, username="ngcp-task-agent")
        link = RedisLink({**login, "username": "ngcp-task-client"})
        async with receiving(backend, CONTROL_CHANNEL) as received:
            await connected(backend)
            await asyncio.wait_for(backend.reach(), 2)
            await link.open()
            await link.subscribe("ngcp-task-1-feedback")
            # Without shards nobody knows: each node counts those that listen on itself.
            assert await link.publish(CONTROL_CHANNEL, b"request") == (1 if sharded else None)
            await until(lambda: received)
            backend.deliver("ngcp-task-1-feedback", b"response")
            assert await asyncio.wait_for(link.receive(), 5) == b"response"
            await link.close()


async def test_keys_are_found_where_they_are(place):
    """One client, keys on all shards; hash tags keep together what belongs together."""
    async with running(Nodes("redis-server", place)) as fleet:
        client = commands(fleet)
        for name in FAR:
            await client.xadd(f"stream:{name}", {"response": name})
        lengths = [await client.xlen(f"stream:{name}") for name in FAR]
        together = await client.eval("return #KEYS", 2, "{a}.x", "{a}.y")
        await client.aclose()

    assert lengths == [1] * len(FAR)
    assert together == 2


def test_sharded_control_channels_have_one_slot():
    """A task whose channel is at home elsewhere is told which name would do."""
    fields = {"cluster": ["a:1"], "sharded": True, "control_channel": "{bus}.own"}
    backend = RedisBackend(Options(fields, "backends/redis.yml"))
    right = Options({"control_channel": "{bus}.dns"}, "tasks/dns.yml")
    default = Options({}, "tasks/ping.yml")
    wrong = Options({"control_channel": "dns"}, "tasks/dns.yml")

    assert backend.subscription(right) == "{bus}.dns"
    assert backend.subscription(default) == "{bus}.own"
    backend.subscription(wrong)
    assert not right.problems
    assert not default.problems
    [problem] = wrong.problems
    assert "'dns'" in str(problem)
    assert "'{bus}.own'" in str(problem)
    assert "'{bus}'" in str(problem)


def test_only_a_cluster_is_sharded():
    """One server has all the slots: the key would mean nothing."""
    options = Options({"sharded": True}, "backends/redis.yml")

    RedisServer(options)

    assert [problem.key for problem in options.problems] == ["sharded"]
