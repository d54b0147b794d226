"""The stream backend when others delete, overwrite, forbid or misname what it works with."""

import asyncio

import pytest

from .streams import POOL, STREAM, StillHost, post, quick, working

pytestmark = pytest.mark.redis


async def test_broken_streams_do_not_end_the_leases_of_others(server, monkeypatch):
    """Somebody has overwritten them; the other's job is not run twice for that."""
    quick(monkeypatch)
    broken = [f"broken{number}" for number in range(5)]
    for stream in (*broken, STREAM):
        await post(server, b"x", stream=stream)
    async with working(
        server, channels=[POOL, *(f"pool:dns {stream}" for stream in broken)]
    ) as worker:
        await worker.claims(6)
        async with working(server, StillHost(identity="m2"), [POOL]) as other:
            for stream in broken:
                await server.call("SET", stream, "odd")
            await asyncio.sleep(2.5)  # more than two leases

            assert worker.lost == []
            assert other.deliveries == []
