"""Monitoring as a whole, turned on and off by settings."""

import asyncio
import sys
from contextlib import asynccontextmanager

import pytest

from ngcp_task_agent.agent import Agent
from ngcp_task_agent.config import Limits
from ngcp_task_agent.dispatch import Dispatcher
from ngcp_task_agent.listening import Listening
from ngcp_task_agent.metrics.service import Monitoring

from ..acceptance.scrape import library
from ..helpers import NODE, MemoryBackend
from ..unit.test_monitoring import view


@pytest.fixture
def where(tmp_path):
    library()
    return Listening(path=str(tmp_path / "m.sock"))


@asynccontextmanager
async def made(**backends):
    """An agent and its monitoring, which is over at the end, however that comes."""
    agent = Agent(Dispatcher(lambda: NODE), Limits())
    monitoring = Monitoring(view(agent, **backends))
    try:
        yield agent, monitoring
    finally:
        await monitoring.close()


async def get(where, path):
    reader, writer = await asyncio.open_unix_connection(where.path)
    writer.write(f"GET {path} HTTP/1.1\r\n\r\n".encode())
    received = await asyncio.wait_for(reader.read(), 10)
    writer.close()
    head, _, body = received.decode().partition("\r\n\r\n")
    return int(head.split()[1]), body


async def test_a_flood_of_scrapes_takes_the_time_of_one(where, monkeypatch):
    """The text is made in the loop that accepts requests."""
    from ngcp_task_agent.metrics.collector import Exposition

    made_texts = []
    monkeypatch.setattr(
        Exposition, "text", lambda self, troubles: made_texts.append(1) or b"text\n"
    )
    async with made(memory=MemoryBackend()) as (_, monitoring):
        await monitoring.apply(where)

        answers = await asyncio.gather(*(get(where, "/metrics") for _ in range(20)))

        assert answers == [(200, "text\n")] * 20
        assert len(made_texts) == 1


async def test_it_counts_only_while_it_is_on(where):
    """Off: no tally, no socket. The counts outlive a move."""
    async with made() as (agent, monitoring):
        assert agent.tally is None
        await monitoring.apply(where)
        tally = agent.tally
        assert tally is not None

        await monitoring.apply(Listening(path=where.path + "2"))
        assert agent.tally is tally
        await monitoring.apply(None)

        assert agent.tally is None
        with pytest.raises(OSError, match="No such file"):
            await get(where, "/livez")


async def test_an_unchanged_place_is_not_listened_on_anew(where):
    """Each reload asks again; a scrape in the middle is not cut off for it."""
    async with made() as (_, monitoring):
        await monitoring.apply(where)
        reader, writer = await asyncio.open_unix_connection(where.path)
        writer.write(b"GET /livez ")

        await monitoring.apply(where)
        writer.write(b"HTTP/1.1\r\n\r\n")

        assert (await asyncio.wait_for(reader.read(), 10)).startswith(b"HTTP/1.1 200 ")
        writer.close()


async def test_a_place_that_was_taken_is_tried_again(where):
    """By the next reload, without a restart."""
    async with made() as (_, first), made() as (_, second):
        await first.apply(where)
        await second.apply(where)
        await first.close()

        await second.apply(where)

        assert await get(where, "/livez") == (200, "ok\n")


async def test_a_library_that_cannot_be_loaded_is_told(where, monkeypatch, caplog):
    """One that is too old, for example; the agent works without."""
    monkeypatch.setitem(sys.modules, "ngcp_task_agent.metrics.collector", None)
    async with made() as (agent, monitoring):
        await monitoring.apply(where)

        assert "metrics: not to be had: " in caplog.text
        assert agent.tally is None


async def test_readiness_names_every_backend_that_is_not_reached(where):
    """One line each, in an order that stays."""

    class Away(MemoryBackend):
        def state(self):
            return super().state()._replace(connected=False, text="no memory")

    async with made(good=MemoryBackend(), b=Away(), a=Away()) as (_, monitoring):
        await monitoring.apply(where)

        status, body = await get(where, "/readyz")

        assert status == 503
        assert body.splitlines() == [
            "backend a is not reached: no memory",
            "backend b is not reached: no memory",
        ]
