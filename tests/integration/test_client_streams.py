"""The client library: durable requests, answers that are kept, and who comes back for them."""

import asyncio
import hashlib
import json
import subprocess
import sys
import time
import uuid

import pytest

from ngcp_task_agent.client import AsyncClient, ClientError, FeedbackLost, Outcome, Posted

from .waiting import until

pytestmark = pytest.mark.redis

KEY = "ngcp-task-agent-feedback:1"
REF = "18d0f568-4a6c-4775-a8a9-6beb2e0372a8"


def response(status, ref=REF, src="sp1", **fields):
    """One response as an agent writes it."""
    default = {"uuid": str(uuid.uuid4()), "ref": ref, "task": "ping", "src": src, "dst": "me"}
    return json.dumps({**default, "status": status, "reason": "", "data": "", **fields}).encode()


async def keep(server, *payloads, key=KEY):
    """What an agent appends."""
    for payload in payloads:
        await server.call("XADD", key, "*", "response", payload)


def client_of(server, **kwargs):
    return AsyncClient.redis({"unix_socket": str(server.path)}, **kwargs)


async def request_in(server, stream):
    """The one request that was posted."""
    await until(lambda: server.call("XLEN", stream), what="posted")
    [(_, fields)] = await server.call("XRANGE", stream, "-", "+")
    assert set(fields) == {b"request"}
    return json.loads(fields[b"request"])


async def answer(server, stream, *statuses):
    """An agent that takes the request from *stream* and answers it where it says."""
    request = await request_in(server, stream)
    for status in statuses:
        await keep(server, response(status, request["uuid"], data=status),
                   key=request["options"]["feedback_stream"])  # fmt: skip
    return request


async def test_a_durable_request_is_an_entry_and_its_answers_are_read(server):
    """Nothing is published, and no feedback channel is named."""
    async with client_of(server, control_stream="requests", src="me") as client:
        agent = asyncio.create_task(answer(server, "requests", "accepted", "done"))
        result = await client.send("ping", feedback_stream=True, ttl=60, data={"a": 1})
        request = await agent

    assert (result.outcome, result.runs[0].data) == (Outcome.DONE, "done")
    assert request["options"]["ttl"] == 60
    assert abs(request["timestamp"] - time.time()) < 5
    assert request["options"]["feedback_stream"].startswith("ngcp-task-agent-feedback:")
    assert "feedback_channel" not in request["options"]
    assert (request["task"], request["src"], request["data"]) == ("ping", "me", {"a": 1})


async def test_ttl_is_judged_by_the_buss_clock(server, monkeypatch):
    """This host may be an hour off."""
    right = time.time()
    monkeypatch.setattr(time, "time", lambda: right + 3600)
    async with client_of(server, control_stream="requests") as client:
        await client.post("ping", ttl=5)
    request = await request_in(server, "requests")

    assert abs(request["timestamp"] - right) < 10


async def test_another_host_comes_back_with_the_key(server):
    """All of it, in order, and each response once."""
    async with client_of(server, control_stream="requests") as client:
        posted = await client.post("ping")
    twice = response("done", posted.uuid, chunk=2, chunks=2, data="two")
    await keep(
        server, response("accepted", posted.uuid), response("accepted", "another"),
        response("done", posted.uuid, chunk=1, chunks=2, data="one "), twice, twice,
        key=posted.feedback_stream,
    )  # fmt: skip
    async with client_of(server) as client:
        result = await client.collect(posted, timeout=5)
        by_key = await client.collect(posted.feedback_stream, posted.uuid, timeout=5)

    for found in (result, by_key):
        assert (found.outcome, found.runs[0].data) == (Outcome.DONE, "one two")
        assert len(found.runs) == 1


async def test_follow_goes_on_from_a_cursor(server):
    """Between two readers nothing is missing and nothing comes again."""
    await keep(server, *(response("progress", seq=number) for number in range(100)))
    seen = []
    async with client_of(server) as client:
        cursor = "0"
        for stop in (30, 100):
            async for entry, found in client.follow(KEY, cursor, REF, timeout=0.5):
                cursor = entry
                seen.append(found["seq"])
                if len(seen) == stop:
                    break

    assert seen == list(range(100))


async def test_lost_connections_are_survived(server):
    """It goes on after what it has read."""
    seen = []

    async def read():
        async with client_of(server) as client:
            async for _, found in client.follow(KEY, timeout=10):
                seen.append(found["seq"])
                if found["seq"] == 59:
                    return

    reading = asyncio.create_task(read())
    for number in range(60):
        await keep(server, response("progress", seq=number))
        if number % 20 == 10:
            await until(lambda number=number: len(seen) > number)
            for connection in await server.clients("ngcp-task"):
                await server.kill(connection)
    await asyncio.wait_for(reading, 10)

    assert seen == list(range(60))


async def test_a_trimmed_beginning_is_said(server):
    """Half an answer must not look like one."""
    await keep(server, *(response("progress", seq=number) for number in range(10)))
    await server.call("XTRIM", KEY, "MAXLEN", 3)
    async with client_of(server) as client:
        with pytest.raises(FeedbackLost, match="trimmed"):
            await client.collect(KEY, REF, timeout=2)
        [(last, _)] = await server.call("XREVRANGE", KEY, "+", "-", "COUNT", 1)
        assert not (await client.collect(KEY, REF, last.decode(), timeout=0.1)).runs


async def test_an_expired_stream_is_said(server):
    """Who has read some of it knows that there was one."""
    async with client_of(server) as client:
        with pytest.raises(FeedbackLost, match="expired"):
            await client.collect(KEY, REF, "1700000000000-0", timeout=2)


async def test_a_key_of_another_type_is_an_error(server):
    """And no endless wait."""
    await server.call("SET", KEY, "x")
    async with client_of(server) as client:
        with pytest.raises(ClientError, match="WRONGTYPE"):
            await client.collect(KEY, REF, timeout=5)
        with pytest.raises(ClientError, match="cursor"):
            await client.collect(KEY, REF, "yesterday", timeout=5)


@pytest.mark.parametrize("second", ["sp1", "prx01a"])
async def test_in_a_pool_the_one_who_takes_over_ends_it(server, second):
    """The first member has died in the middle of its answer; the next may have its name."""
    await keep(
        server, response("accepted"), response("done", chunk=1, chunks=2, data="half"),
        response("accepted", src=second),
        response("done", src=second, chunk=1, chunks=2, data="a"),
        response("done", src=second, chunk=2, chunks=2, data="b"),
    )  # fmt: skip
    async with client_of(server) as client:
        began = time.monotonic()
        result = await client.collect(Posted(REF, KEY, pool=True), timeout=10)

    assert time.monotonic() - began < 5
    assert result.outcome is Outcome.DONE
    assert result.unfinished == []
    assert [run.data for run in result.runs if run.ended] == ["ab"]


async def test_without_a_pool_each_node_ends_by_itself(server):
    """As ever."""
    await keep(server, response("accepted"), response("accepted", src="b"), response("done"))
    async with client_of(server) as client:
        result = await client.collect(KEY, REF, timeout=1)

    assert result.outcome is Outcome.UNFINISHED
    assert [run.src for run in result.unfinished] == ["b"]


async def test_a_durable_request_is_waited_for_longer_than_two_seconds(server):
    """The agent may be away; that is what it is durable for."""

    async def late():
        await asyncio.sleep(2.5)
        return await answer(server, "requests", "accepted", "done")

    async with client_of(server, control_stream="requests") as client:
        agent = asyncio.create_task(late())
        result = await client.send("ping", feedback_stream=True, timeout=10)
        await agent

    assert result.outcome is Outcome.DONE


READER = """
import asyncio, sys
from ngcp_task_agent.client import AsyncClient
async def main(path, key, cursor):
    async with AsyncClient.redis({"unix_socket": path}) as client:
        async for cursor, response in client.follow(key, cursor):
            print(cursor, response["seq"], response["data"], flush=True)
asyncio.run(main(*sys.argv[1:]))
"""


async def test_a_client_killed_in_the_middle_is_resumed_elsewhere(make_server):
    """Two processes, one after the other, have read every byte."""
    server = make_server("--maxmemory", "512mb")
    server.start()
    data = [format(number, "x") * 5000 for number in range(2000)]
    await keep(server, *(response("progress", seq=n, data=d) for n, d in enumerate(data)))
    lines, cursor = [], "0"
    for wanted in (700, 2000):
        reader = await asyncio.create_subprocess_exec(
            sys.executable, "-c", READER, str(server.path), KEY, cursor,
            stdout=subprocess.PIPE, limit=1 << 20,
        )  # fmt: skip
        while len(lines) < wanted:
            cursor, seq, text = (await reader.stdout.readline()).decode().split()
            lines.append((int(seq), text))
        reader.kill()
        await reader.wait()

    assert [seq for seq, _ in lines] == list(range(2000))
    whole = hashlib.sha256("".join(text for _, text in lines).encode()).hexdigest()
    assert whole == hashlib.sha256("".join(data).encode()).hexdigest()
