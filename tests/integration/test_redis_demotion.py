"""A master that was made a replica still answers: what it refuses goes to the new one."""

import asyncio

import pytest
from redis.asyncio import Redis

from ngcp_task_agent.backends.redis_publisher import Publisher
from ngcp_task_agent.backends.redis_stream_calls import Calls
from ngcp_task_agent.backends.redis_stream_scripts import KEEP_RESPONSE

from .redis_fleet import Watched, running
from .test_redis_sentinel import server_of
from .waiting import until

pytestmark = pytest.mark.redis

BACK = 10.0  # seconds


async def test_what_a_demoted_master_refuses_is_written_to_the_new_one(place):
    """READONLY comes out of a script, to the publisher and to the stream backend."""
    async with running(Watched("redis-server", place)) as fleet:
        server = server_of(fleet.options)
        publisher, calls = Publisher(server, 1000, 1 << 20), Calls(server)
        publishing = asyncio.create_task(publisher.run())
        try:
            publisher.post("", b"before", "fb-published")
            await publisher.flush()
            await calls.insist(KEEP_RESPONSE, ["fb-called"], b"before", 100, 60)
            assert await fleet.master.call("WAIT", 1, 2000) == 1
            await fleet.sentinels[0].call("SENTINEL", "FAILOVER", fleet.NAME)
            await until(lambda: _promoted(fleet), BACK, "the other one is the master")
            # As the sentinels do it themselves, some 10 s later.
            await fleet.master.call("REPLICAOF", "127.0.0.1", fleet.replica.port)

            publisher.post("", b"after", "fb-published")
            async with asyncio.timeout(BACK):
                await calls.insist(KEEP_RESPONSE, ["fb-called"], b"after", 100, 60)
                await publisher.flush()
            async with Redis(**fleet.replica.kwargs) as client:
                for key in ("fb-published", "fb-called"):
                    said = [fields[b"response"] for _, fields in await client.xrange(key)]
                    assert said == [b"before", b"after"], key
            assert publisher.dropped == 0
        finally:
            publishing.cancel()
            await asyncio.wait((publishing,))
            await calls.close()


async def test_many_may_ask_the_sentinels_at_once(place):
    """Each has its answer, also where another one has had its own and is done."""
    async with running(Watched("redis-server", place)) as fleet:
        manager = server_of(fleet.options).commands().connection_pool.sentinel_manager
        expected = ("127.0.0.1", fleet.master.port)
        for _ in range(20):
            asked = (manager.discover_master(fleet.NAME) for _ in range(9))
            assert await asyncio.gather(*asked) == [expected] * 9


async def _promoted(fleet):
    return await fleet.named() == fleet.replica.port
