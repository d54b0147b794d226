"""The stream backend when others delete, overwrite, forbid or misname what it works with."""

import asyncio

import pytest

from .streams import (
    KEYS,
    POOL,
    STREAM,
    StillHost,
    killed,
    length,
    pending,
    post,
    quick,
    working,
)
from .waiting import until

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


# Rights


async def _limited(server, *rules):
    """A login with these rights."""
    await server.call("ACL", "SETUSER", "agent", "reset", "on", ">secret", "+@all", *rules)
    return {"username": "agent", "password": "secret"}


async def test_a_feedback_stream_that_is_forbidden_wedges_nothing(server, caplog):
    """The client has named it; the channel is answered and the request ends."""
    login = await _limited(server, "~work", "~ngcp-task-agent:*", "&*")
    await post(server, b"x")
    async with working(server, channels=[POOL], **login) as worker, server.listener("fb") as heard:
        [claim] = await worker.claims(1)

        assert await asyncio.wait_for(claim.settle("fb", b"done", "kept"), 5) is True
        await until(lambda: heard)

    assert heard == [b"done"]
    assert await pending(server) == {}
    assert "no permissions" in caplog.text.lower()


async def test_a_channel_that_is_forbidden_does_not_repeat_what_is_kept(server, caplog):
    """One response in the stream, whatever becomes of the channel."""
    login = await _limited(server, "~*", "&work")
    await post(server, b"x")
    async with working(server, channels=[POOL], **login) as worker:
        [claim] = await worker.claims(1)

        assert await asyncio.wait_for(claim.settle("fb", b"done", "kept"), 5) is True

    assert await length(server, "kept") == 1
    assert await pending(server) == {}
    assert "can't publish" in caplog.text


async def test_what_is_refused_for_good_is_given_up_and_told(server, monkeypatch, caplog):
    """The job's place is free again, nobody runs the job again, and the state counts it."""
    quick(monkeypatch)
    login = await _limited(server, "~*", "&*")
    await post(server, b"x")
    async with working(server, channels=[POOL], **login) as worker:
        [claim] = await worker.claims(1)
        await server.call("ACL", "SETUSER", "agent", "-xack")

        assert await asyncio.wait_for(claim.settle("fb", b"done"), 15) is False
        assert "1 requests given up" in worker.backend.state().text
        await asyncio.sleep(1.5)  # more than a lease
        assert len(worker.deliveries) == 1
        await server.call("ACL", "SETUSER", "agent", "+xack")
    assert caplog.text.count("is given up") == 1


# Deleted entries


async def test_who_runs_what_was_deleted_from_the_stream_answers_it(server, monkeypatch):
    """A client's XADD MAXLEN, XTRIM, XDEL: the job goes on, and nobody else begins it."""
    quick(monkeypatch)
    [id] = await post(server, b"x")
    async with (
        working(server, channels=[POOL]) as worker,
        server.listener("fb") as heard,
    ):
        [claim] = await worker.claims(1)
        async with working(server, StillHost(identity="m2"), [POOL]) as other:
            seen = len(other.deliveries)
            await server.call("XDEL", STREAM, id)
            await asyncio.sleep(2.5)  # more than two leases

            assert worker.lost == []
            assert len(other.deliveries) == seen
            assert await claim.settle("fb", b"done") is True
            await until(lambda: heard)
    assert await length(server, KEYS.dead) == 0


async def test_what_was_deleted_and_let_down_is_put_among_the_dead(server, monkeypatch, caplog):
    """Nobody knows the request any more; that somebody has deleted it is told."""
    quick(monkeypatch)
    [id] = await post(server, b"x")
    async with working(server, channels=[POOL]) as worker:
        await worker.claims(1)
        await killed(worker)
    await server.call("XDEL", STREAM, id)

    async with working(server, StillHost(identity="m2"), [POOL]) as other:
        await until(lambda: length(server, KEYS.dead), 8)
        assert other.deliveries == []
    await _is_told(server, id, caplog)


async def test_what_was_deleted_while_it_waited_is_put_among_the_dead(server, monkeypatch, caplog):
    """It was to be tried again."""
    quick(monkeypatch)
    [id] = await post(server, b"x")
    async with working(server, channels=[POOL]) as worker:
        [claim] = await worker.claims(1)
        assert await claim.retry(0.3)
        await server.call("XDEL", STREAM, id)

        await until(lambda: length(server, KEYS.dead), 8)
    await _is_told(server, id, caplog)


async def _is_told(server, id, caplog):
    async with server.client() as client:
        [(_, fields)] = await client.xrange(KEYS.dead)
    assert (fields[b"entry"], fields[b"reason"]) == (
        id, b"deleted from the stream before it was handled",
    )  # fmt: skip
    assert await pending(server) == {}
    assert "deleted from the stream" in caplog.text


@pytest.mark.parametrize("channel", [STREAM, POOL])
async def test_what_was_deleted_before_its_retry_is_tried_again(server, monkeypatch, channel):
    """Here the request is still known."""
    quick(monkeypatch)
    [id] = await post(server, b"x")
    async with working(server, channels=[channel]) as worker:
        [claim] = await worker.claims(1)
        await server.call("XDEL", STREAM, id)
        assert await claim.retry(0.1)

        [_, again] = await worker.claims(2)
        assert worker.payloads == [b"x", b"x"]
        assert await again.settle("fb", b"done")


# Keys of others


async def test_an_empty_stream_that_had_entries_is_no_feedback_stream(server, caplog):
    """It is somebody's queue, and would begin to expire."""
    async with server.client() as client:
        await client.xdel("queue", await client.xadd("queue", {"a": "b"}))
        await client.xgroup_create("fresh", "mine", mkstream=True)
        await client.xgroup_create("requests", "pool:dns", mkstream=True)
    names = ["queue", "requests", "fresh"]
    await post(server, *(name.encode() for name in names * 2))
    async with working(server, channels=[POOL]) as worker:
        claims = await worker.claims(6)
        for claim, name in zip(claims, names, strict=False):
            assert await claim.settle("fb", b"done", name)
        for name in names:
            worker.backend.deliver("fb", b"accepted", name)
        await worker.backend.flush("fb")
        for claim in claims[3:]:
            assert await claim.drop()

    assert [await length(server, name) for name in names] == [0, 0, 2]
    assert [await server.call("TTL", name) for name in names[:2]] == [-1, -1]


async def test_responses_are_not_kept_among_requests(server):
    """Not even where the other stream is to expire, and Redis would allow it."""
    await post(server, b"x")
    await post(server, b"y", stream="other")
    async with working(server, channels=[POOL, "pool:dns other"]) as worker:
        claim, _ = sorted(await worker.claims(2), key=lambda claim: claim.request)
        await server.call("EXPIRE", "other", 1000)
        before = await length(server, "other")
        assert await claim.settle("fb", b"done", "other")
        assert await length(server, "other") == before


async def test_a_control_stream_does_not_expire(server):
    """Whoever has made it so: requests would go with it."""
    await post(server, b"x")
    await server.call("EXPIRE", STREAM, 1000)
    async with working(server) as worker:
        await worker.claims(1)
        assert await server.call("TTL", STREAM) == -1


async def test_what_is_no_request_gets_one_letter_for_all_nodes(server):
    """It is none for any of them."""
    [first, second] = await post(server, b"{", b"[")
    async with working(server) as one, working(server, StillHost(identity="m2")) as other:
        for worker in (one, other):
            for claim in await worker.claims(2):
                assert await claim.drop("not a request")

    async with server.client() as client:
        letters = [fields[b"entry"] for _, fields in await client.xrange(KEYS.dead)]
    assert letters == [first, second]


@pytest.mark.parametrize("way", ["settle", "drop"])
async def test_dead_letters_that_cannot_be_kept_are_told(server, caplog, way):
    """Somebody has overwritten the key; the request is answered all the same."""
    await server.call("SET", KEYS.dead, "odd")
    await post(server, b"x")
    async with working(server, channels=[POOL]) as worker:
        [claim] = await worker.claims(1)
        if way == "settle":
            assert await claim.settle("fb", b"error", failure="it broke")
        else:
            assert await claim.drop("not a request")

    assert await pending(server) == {}
    assert f"dead letters {KEYS.dead}: WRONGTYPE" in caplog.text
