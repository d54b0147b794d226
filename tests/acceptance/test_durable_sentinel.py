"""Durable requests while sentinels replace the master."""

import asyncio
import shutil
import tempfile
import time
from pathlib import Path

import pytest

from tests.integration.redis_fleet import Watched, running

from .durable import (
    AWAY,
    RETRY,
    STREAM,
    all_ended,
    connected,
    daemons,
    durable,
    ends,
    post,
    request,
    server_of,
    statuses,
)

pytestmark = pytest.mark.redis

BACK = 10.0  # seconds within which every daemon has to be back
COUNT = 200
FEEDBACK = "ngcp-test-feedback"


@pytest.fixture
def place():
    path = Path(tempfile.mkdtemp(prefix="nta-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path, ignore_errors=True)


def test_a_failover_in_the_middle_of_200_requests(place):
    """The master is killed while they run: each ends once, and the daemons are back soon."""
    asyncio.run(asyncio.wait_for(_failover(place), 55))


async def _failover(place):
    runs = place / "runs"
    runs.mkdir(mode=0o777)
    script = 'echo "$NGCP_TASK_UUID" >> "$0/$$"; sleep 0.05'
    tasks = {"work": durable("/bin/sh", "-c", script, runs, pool="p", retry=RETRY)}
    async with running(Watched("redis-server", place)) as fleet:
        with daemons(place, fleet.options, tasks) as nodes:
            for daemon in nodes:
                await connected(daemon)
            async with server_of(fleet.options).commands(1.0) as client:
                refs = [await _posted(client) for _ in range(COUNT)]
                # What the servers themselves may lose is not what is tried here.
                assert await client.execute_command("WAIT", 1, 2000) == 1
                await _until_some_have_ended(client)
                fleet.master.kill()
                began = time.monotonic()
                # What is posted while there is no master is what a client tries again.
                refs += [await _posted(client) for _ in range(20)]
                for daemon in nodes:
                    await connected(daemon, began + BACK - time.monotonic())
                found = await all_ended(client, FEEDBACK, refs, 30)
                await asyncio.sleep(0.5)  # a second end would be here by now
                found = await statuses(client, FEEDBACK)
                state = await client.xpending(STREAM, "pool:p")
    assert [ref for ref in refs if ends(found[ref]) != 1] == []
    assert {found[ref][-1] for ref in refs} == {"done"}
    assert state["pending"] == 0
    ran = {line for file in runs.iterdir() for line in file.read_text().split()}
    assert ran >= set(refs)


async def _posted(client):
    """One request, tried again until there is a master; with the same uuid it runs once."""
    made = request("work", FEEDBACK, dst="p")
    while True:
        try:
            return await post(client, made)
        except AWAY:
            await asyncio.sleep(0.1)


async def _until_some_have_ended(client):
    while True:
        found = await statuses(client, FEEDBACK)
        if sum(map(ends, found.values())) >= COUNT // 5:
            return
        await asyncio.sleep(0.02)
