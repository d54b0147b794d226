"""Durable requests on a cluster: every way in and out, a slot that moves, a master that dies."""

import asyncio
import json
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

from ngcp_task_agent.backends.redis_topology import slot_of
from ngcp_task_agent.client import AsyncClient
from tests.integration.redis_fleet import Nodes, running

from .durable import (
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
from .harness import COMMANDS, command

pytestmark = pytest.mark.redis

NEAR = f"ngcp-test:{{{STREAM}}}:feedback"  # in the control stream's slot
FAR = "ngcp-test:feedback"
TO_ALL = f"{STREAM}-all"  # a pool would reject what it has no task for
NEARBY = 150  # requests whose answers are kept beside them; those of the others are not
LIMIT = 55  # seconds for a test


@pytest.fixture
def place():
    path = Path(tempfile.mkdtemp(prefix="nta-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path, ignore_errors=True)


def tasks(place):
    """One for a pool, one for every node, one that fails, one by pub/sub."""
    return {
        "work": durable("/bin/sleep", "0.05", pool="p", retry=RETRY),
        "tell": durable("/bin/echo", "hello", stream=TO_ALL),
        "fail": durable("/bin/false", pool="p", retry={"attempts": 1}),
        "plain": command("/bin/echo", "plain"),
    }


async def ngcp_task(daemon, *words):
    """Run the command with the daemon's configuration; its exit status and what it printed."""
    process = await asyncio.create_subprocess_exec(
        COMMANDS / "ngcp-task", *words, "--config-dir", daemon.config,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    out, _ = await asyncio.wait_for(process.communicate(), 25)
    return process.returncode, out.decode()


def test_every_way_in_and_out(place):
    """XADD, the library, the command; answers near and far; dead letters; pub/sub with a
    feedback stream."""
    asyncio.run(asyncio.wait_for(_every_way(place), LIMIT))


async def _every_way(place):
    assert slot_of(NEAR) == slot_of(STREAM) != slot_of(FAR)
    async with running(Nodes("redis-server", place)) as fleet:
        with daemons(place, fleet.options, tasks(place)) as nodes:
            for daemon in nodes:
                await connected(daemon)
            async with server_of(fleet.options).commands(2.0) as client:
                await _by_xadd(client)
            await _by_the_library(fleet.options)
            await _by_the_command(nodes[0])
            await _dead_letters(nodes[0])
            await _by_pub_sub(nodes[0])


async def _by_xadd(client):
    for feedback in (NEAR, FAR):
        work = [await post(client, request("work", feedback, dst="p")) for _ in range(10)]
        told = [await post(client, request("tell", feedback), TO_ALL) for _ in range(5)]
        found = await all_ended(client, feedback, work, 15)
        assert [found[ref] for ref in work] == [["accepted", "done"]] * 10
        found = await all_ended(client, feedback, told, 15, nodes=2)
        assert [sorted(found[ref]) for ref in told] == [["accepted"] * 2 + ["done"] * 2] * 5


async def _by_the_library(options):
    async with AsyncClient.redis(options) as client:
        for feedback in (True, FAR):
            result = await client.send("work", dst="p", control_stream=STREAM, pool=True,
                                       feedback_stream=feedback, timeout=10, ttl=60)  # fmt: skip
            assert [run.status for run in result.runs] == ["done"], feedback


async def _by_the_command(daemon):
    for words in ((), ("--control-stream", TO_ALL, "--feedback-stream", FAR)):
        code, out = await ngcp_task(daemon, "send", "tell", "--timeout", "10", *words)
        assert (code, out.count("hello\n")) == (0, 2), out
    code, out = await ngcp_task(daemon, "send", "work", "--dst", "p", "--no-wait")
    ref, key = out.split()
    code, out = await ngcp_task(daemon, "collect", key, "--ref", ref, "--pool")
    assert (code, out.count(": done")) == (0, 1), out


async def _dead_letters(daemon):
    code, out = await ngcp_task(daemon, "send", "fail", "--dst", "p", "--timeout", "10")
    assert code == 1, out
    code, out = await ngcp_task(daemon, "dead", "list", "--task", "fail", "--json")
    letter = json.loads(out)
    assert (code, letter["request"]["task"]) == (0, "fail")
    code, out = await ngcp_task(daemon, "dead", "replay", letter["id"], "--task", "fail")
    assert code == 0, out
    _, ref = out.split()
    key = letter["request"]["options"]["feedback_stream"]
    code, out = await ngcp_task(daemon, "collect", key, "--ref", ref, "--pool")
    assert code == 1, out
    code, out = await ngcp_task(daemon, "dead", "purge", "--all", "--task", "fail")
    assert code == 0, out


async def _by_pub_sub(daemon):
    for words in (("--durable",), ("--feedback-stream", FAR)):
        code, out = await ngcp_task(daemon, "send", "plain", "--timeout", "8", *words)
        assert (code, out.count("plain\n")) == (0, 2), out


def test_the_control_streams_slot_moves_while_jobs_run(place):
    """Its keys with it, one by one, as redis-cli does it."""
    asyncio.run(asyncio.wait_for(_resharding(place), LIMIT))


async def _resharding(place):
    async with running(Nodes("redis-server", place)) as fleet:
        with daemons(place, fleet.options, tasks(place)) as nodes:
            for daemon in nodes:
                await connected(daemon)
            async with server_of(fleet.options).commands(2.0) as client:
                refs = [await post(client, request("work", NEAR, dst="p")) for _ in range(NEARBY)]
                refs += [await post(client, request("work", FAR, dst="p")) for _ in range(50)]
                await _some_ended(client, refs)
                await _move_with_keys(fleet, slot_of(STREAM))
                refs += [await post(client, request("work", FAR, dst="p")) for _ in range(20)]
                await _each_ended_once(client, refs)


async def _move_with_keys(fleet, slot):
    source = fleet.owner(slot)
    target = next(master for master in fleet.masters if master is not source)
    await target.call("CLUSTER", "SETSLOT", slot, "IMPORTING", fleet.ids[source])
    await source.call("CLUSTER", "SETSLOT", slot, "MIGRATING", fleet.ids[target])
    while keys := await source.call("CLUSTER", "GETKEYSINSLOT", slot, 1):
        await source.call("MIGRATE", "127.0.0.1", target.port, keys[0], 0, 2000)
        await asyncio.sleep(0.2)  # so that some is here and some there
    for server in (target, source, *fleet.masters):
        await server.call("CLUSTER", "SETSLOT", slot, "NODE", fleet.ids[target])


def test_the_control_streams_master_dies(place):
    """The replica goes on with what it has got."""
    asyncio.run(asyncio.wait_for(_failover(place), LIMIT))


async def _failover(place):
    async with running(Nodes("redis-server", place)) as fleet:
        with daemons(place, fleet.options, tasks(place)) as nodes:
            for daemon in nodes:
                await connected(daemon)
            async with server_of(fleet.options).commands(2.0) as client:
                refs = [await post(client, request("work", NEAR, dst="p")) for _ in range(NEARBY)]
                refs += [await post(client, request("work", FAR, dst="p")) for _ in range(50)]
                await _some_ended(client, refs)
                master = fleet.owner(slot_of(STREAM))
                assert await master.call("WAIT", 1, 2000) == 1
                master.kill()
                await _each_ended_once(client, refs)
                for daemon in nodes:
                    await connected(daemon)


async def _some_ended(client, refs):
    while True:
        found = await statuses(client, NEAR)
        if sum(map(ends, found.values())) >= len(refs) // 10:
            return
        await asyncio.sleep(0.02)


async def _each_ended_once(client, refs):
    found = await all_ended(client, NEAR, refs[:NEARBY], 35)
    found |= await all_ended(client, FAR, refs[NEARBY:], 10)
    await asyncio.sleep(0.5)  # a second end would be here by now
    found |= await statuses(client, NEAR) | await statuses(client, FAR)
    assert [(ref, found[ref]) for ref in refs if ends(found[ref]) != 1] == []
