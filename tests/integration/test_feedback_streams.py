"""Responses that are kept, and the bus's clock: the Redis backend and a real server."""

import asyncio
import hashlib
import os
import time
from contextlib import asynccontextmanager

import pytest

from ngcp_task_agent.backends.redis_publisher import Publisher
from ngcp_task_agent.backends.redis_server import RedisServer
from ngcp_task_agent.errors import BackendError

from .backends import connected, receiving, redis_backend
from .jobs import made
from .waiting import until

pytestmark = pytest.mark.redis

KEY = "ngcp-task-agent-feedback:1"
NAP = 10.0  # seconds that a client is asleep


@asynccontextmanager
async def connection(server, **fields):
    """A backend that has reached *server*."""
    backend = redis_backend(unix_socket=str(server.path), **fields)
    async with receiving(backend):
        await connected(backend)
        yield backend


async def kept(server, key=KEY):
    """The responses in a stream, in order."""
    return [fields[b"response"] for _, fields in await server.call("XRANGE", key, "-", "+")]


async def test_a_response_is_published_and_kept(server):
    """In the order of delivery, in both places."""
    payloads = [b"%d" % number for number in range(1000)]
    async with connection(server) as backend, server.listener("fb") as heard:
        for payload in payloads:
            backend.deliver("fb", payload, KEY)
        await backend.flush("fb")
        await until(lambda: len(heard) == 1000)

        assert heard == payloads
        assert await kept(server) == payloads
        assert backend.state().dropped == 0


async def test_a_stream_alone_rings_at_its_own_name(server):
    """A client that waits need not poll; what it hears is no response."""
    async with connection(server) as backend, server.listener(KEY) as heard:
        backend.deliver("", b"response", KEY)
        await until(lambda: heard)

        assert heard == [b"1"]
        assert await kept(server) == [b"response"]


async def test_a_stream_has_a_limit_and_an_expiry(server):
    """Nobody clears away what a client has left behind."""
    async with connection(server, feedback_length=50, feedback_expiry=120) as backend:
        for number in range(1000):
            backend.deliver("", b"%d" % number, KEY)
        await backend.flush("")

        assert 50 <= await server.call("XLEN", KEY) <= 150  # whole nodes of 100 are trimmed
        assert 100 < await server.call("TTL", KEY) <= 120


async def test_the_limits_that_nobody_has_set(server):
    """Ten thousand responses, one hour."""
    async with connection(server) as backend:
        for number in range(12_000):
            backend.deliver("", b"%d" % number, KEY)
            if number % 1000 == 0:
                await backend.flush("")
        await backend.flush("")

        assert 10_000 <= await server.call("XLEN", KEY) <= 10_100
        assert 3590 < await server.call("TTL", KEY) <= 3600


@pytest.mark.parametrize("key", ["ngcp-task-agent-stream", "ngcp-task-agent:{x}:dead"])
async def test_a_key_of_the_agents_is_refused(server, caplog, key):
    """A client must not get requests trimmed, or dead letters expired."""
    async with connection(server) as backend, server.listener("fb") as heard:
        backend.deliver("", b"lost", key)
        backend.deliver("fb", b"heard", key)
        await backend.flush("fb")
        await until(lambda: heard)

        assert await server.call("EXISTS", key) == 0
        assert (heard, backend.state().dropped) == ([b"heard"], 1)
    assert key in caplog.text


@pytest.mark.parametrize("make", [("SET", KEY, "x"), ("XADD", KEY, "*", "order", "1")])
async def test_what_belongs_to_others_is_left_alone(server, make):
    """Neither changed nor made to expire, whatever a client names."""
    await server.call(*make)
    before = await server.call("DUMP", KEY)
    async with connection(server, feedback_length=1) as backend, server.listener("fb") as heard:
        backend.deliver("", b"lost", KEY)
        backend.deliver("fb", b"heard", KEY)
        backend.deliver("fb", b"next")
        await until(lambda: len(heard) == 2)

        assert heard == [b"heard", b"next"]
        assert backend.state().dropped == 1
    assert await server.call("TTL", KEY) == -1
    assert await server.call("DUMP", KEY) == before


async def test_replies_are_counted_right_among_refusals(server):
    """One, two or no good replies a message: each is settled once, and those after it as well."""
    await server.call("SET", "text", "x")
    async with connection(server) as backend:
        for number in range(300):
            backend.deliver("fb", b"a%d" % number)
            backend.deliver("fb", b"b%d" % number, "text")
            backend.deliver("", b"c%d" % number, KEY)
            backend.deliver("", b"d%d" % number, "text")
        await asyncio.wait_for(backend.flush("fb"), 10)

        assert backend.state().dropped == 300
        assert await kept(server) == [b"c%d" % number for number in range(300)]
        stats = await server.call("INFO", "commandstats")
        assert stats["cmdstat_publish"]["calls"] == 1200


async def test_what_is_kept_is_not_lost_for_a_channel_that_is_refused(server):
    """The client reads its stream, and has named a channel that is not allowed."""
    await server.call(
        "ACL", "SETUSER", "agent", "on", ">secret", "resetchannels", "&control", "~*", "+@all"
    )
    async with connection(server, username="agent", password="secret") as backend:
        backend.deliver("forbidden", b"kept", KEY)
        await backend.flush("")

        assert await kept(server) == [b"kept"]
        assert backend.state().dropped == 0


async def test_responses_wait_for_the_server(make_server):
    """What could not be appended while it was away is appended later, in order."""
    server = make_server()
    backend = redis_backend(unix_socket=str(server.path))
    async with receiving(backend):
        for number in range(100):
            backend.deliver("", b"%d" % number, KEY)
        server.start()
        await asyncio.wait_for(backend.flush(""), 10)

        assert await kept(server) == [b"%d" % number for number in range(100)]


async def test_large_ones_arrive_whole_at_a_client_that_was_asleep(make_server):
    """1,000 of 64 KiB: pub/sub drops a subscriber with 32 MiB unread; a stream keeps them."""
    server = make_server("--maxmemory", "512mb")
    server.start()
    sent, read = hashlib.sha256(), hashlib.sha256()
    async with connection(server) as backend:
        for number in range(1000):
            payload = number.to_bytes(4) + os.urandom(64 * 1024 - 4)
            sent.update(payload)
            backend.deliver("", payload, KEY)
        await asyncio.wait_for(backend.flush(""), 20)
        assert backend.state().dropped == 0
    await asyncio.sleep(NAP)

    cursor = b"0"
    async with server.client() as client:
        while found := await client.xread({KEY: cursor}, count=10):
            for _, fields in found[0][1]:
                read.update(fields[b"response"])
            cursor = found[0][1][-1][0]

    assert read.hexdigest() == sent.hexdigest()


# The clock


async def test_now_is_the_servers_time(server):
    """Asked on the connection that publishes: no third one is made."""
    async with connection(server) as backend:
        backend.deliver("fb", b"x")
        first = await backend.now()
        seconds, microseconds = await server.call("TIME")

        assert abs(first - (seconds + microseconds / 1e6)) < 1.0
        assert len(await server.clients()) == 2


async def test_a_flood_of_responses_does_not_disturb_the_question(server):
    """Its reply is told from theirs."""
    async with connection(server) as backend, server.listener("fb") as heard:
        times = []
        for number in range(2000):
            backend.deliver("fb", b"%d" % number, KEY if number % 3 else "")
            if number % 100 == 0:
                times.append(await backend.now())
        await until(lambda: len(heard) == 2000)

        assert times == sorted(times)
        assert abs(times[-1] - time.time()) < 5  # this host's clock is the server's here
        assert heard == [b"%d" % number for number in range(2000)]


async def test_each_question_is_answered(server):
    """Also one that comes while the reply to another is on its way."""
    publisher = Publisher(made(RedisServer, {"unix_socket": str(server.path)}), 10, 1000)

    async def ask(turns):
        for _ in range(turns):
            await asyncio.sleep(0)
        return await publisher.time()

    running = asyncio.create_task(publisher.run())
    try:
        async with asyncio.timeout(5):
            answers = await asyncio.gather(*(ask(turns) for turns in range(300)))
    finally:
        running.cancel()
        await asyncio.wait((running,))

    assert answers == sorted(answers)
    assert len(answers) == 300


async def test_now_goes_on_while_the_server_is_away(server):
    """A request whose time is over must not be started then."""
    async with connection(server) as backend:
        before = await backend.now()
        server.stop()
        after = await asyncio.wait_for(backend.now(), 3)

        assert 0 <= after - before < 10


async def test_now_is_unknown_before_the_server_was_ever_asked(place):
    """And said at once, in about a second."""
    backend = redis_backend(unix_socket=str(place / "redis.sock"))
    async with receiving(backend):
        with pytest.raises(BackendError):
            await asyncio.wait_for(backend.now(), 3)
