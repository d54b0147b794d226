"""The stream backend when its server comes, goes, forgets, hangs or hangs up; and trimming."""

import asyncio
import random
import signal
from collections import Counter
from contextlib import AsyncExitStack, suppress

import pytest

from ngcp_task_agent.backends import redis_stream_calls, redis_stream_group
from ngcp_task_agent.errors import BackendError

from .backends import connected, disconnected
from .streams import (
    KEYS,
    POOL,
    STREAM,
    StillHost,
    Worker,
    killed,
    length,
    pending,
    post,
    quick,
    serving,
    stream_backend,
    working,
)
from .tcp_proxy import proxied
from .waiting import until

pytestmark = pytest.mark.redis


# Trimming


async def test_what_is_not_handled_is_never_trimmed(server, monkeypatch):
    """However much comes after it; what has been handled goes."""
    quick(monkeypatch)
    await post(server, *(b"old" for _ in range(50)))
    async with working(server, StillHost(free=50, counts=True), [POOL]) as slow:
        claims = await slow.claims(50)
        async with working(server, StillHost(identity="m2"), [POOL]) as fast:
            for _ in range(20):
                await post(server, *(b"new" for _ in range(500)))
            await until(lambda: len(fast.deliveries) == 10_000, 20)
            await asyncio.gather(*(delivery.claim.drop() for delivery in fast.deliveries))
            await asyncio.sleep(1)  # some times of trimming

            assert await length(server) == 10_050
            assert all(await asyncio.gather(*(claim.settle("fb", b"done") for claim in claims)))
            await until(lambda: _at_most(server, 1))


async def _at_most(server, count):
    return await length(server) <= count


async def test_broadcast_entries_are_kept_for_those_who_are_away(server, monkeypatch):
    """Handled or not, for the time of retention."""
    quick(monkeypatch)
    await post(server, *(b"x" for _ in range(10)))
    async with working(server, retention=2) as worker:
        claims = await worker.claims(10)
        assert all(await asyncio.gather(*(claim.drop() for claim in claims)))
        await asyncio.sleep(0.7)  # some times of trimming
        assert await length(server) == 10

        await until(lambda: _at_most(server, 0), 6)


async def test_a_stream_without_groups_is_left_alone(server, monkeypatch):
    """What is in it was never wanted by anybody yet."""
    quick(monkeypatch)
    host = StillHost()
    await post(server, b"x")
    async with working(server, host, ["pool:dns work nobody"]):
        await asyncio.sleep(0.7)  # some times of trimming

    assert await length(server) == 1
    assert await server.call("EXISTS", KEYS.groups) == 0


async def test_a_group_that_was_not_seen_for_long_is_removed(server, monkeypatch):
    """Its node is gone for good, and would keep everything for ever."""
    quick(monkeypatch)
    await post(server, b"x")
    async with working(server, StillHost("db01", "m1"), group_expiry=1, retention=1) as gone:
        await gone.claims(1)
    async with working(server, StillHost("db02", "m2"), group_expiry=100, retention=1) as worker:
        await worker.claims(1)

        await until(lambda: _groups_are(server, ["node:db02:m2"]), 6)
    assert await server.call("HKEYS", KEYS.groups) == [b"node:db02:m2"]


@pytest.mark.parametrize("pending", [False, True], ids=["empty", "pending"])
async def test_a_pool_that_nobody_has_seen_for_long_is_removed(
    server, monkeypatch, pending, caplog
):
    """It was renamed, and would keep everything for ever; what somebody held there stays."""
    quick(monkeypatch)
    caplog.set_level("INFO")
    await post(server, b"x")
    async with working(server, StillHost("db01", "m1"), ["pool:old work"], group_expiry=1) as gone:
        [claim] = await gone.claims(1)
        if not pending:
            assert await claim.drop()
    async with working(server, StillHost("db02", "m2"), [POOL], group_expiry=100) as worker:
        for one in await worker.claims(1 if pending else 0):
            await one.drop()
        await asyncio.sleep(2.5)  # longer than it lasts, and some times of trimming
        await post(server, b"y")
        await until(lambda: b"y" in worker.payloads)

        assert await _groups_are(server, ["pool:dns", "pool:old"] if pending else ["pool:dns"])
    assert ("pool:old was not seen for long" in caplog.text) is not pending


async def _groups_are(server, names):
    async with server.client() as client:
        if not await client.exists(STREAM):
            return not names
        return [one["name"].decode() for one in await client.xinfo_groups(STREAM)] == names


# Forgetting


@pytest.mark.parametrize("words", [["FLUSHALL"], ["DEL", STREAM], ["XGROUP"]])
async def test_a_group_that_is_gone_is_made_again(server, monkeypatch, caplog, words):
    """After a flush, a failover, somebody's DEL; and it is told."""
    quick(monkeypatch)
    if words == ["XGROUP"]:
        words = ["XGROUP", "DESTROY", STREAM, "pool:dns"]
    async with working(server, channels=[POOL]) as worker:
        await post(server, b"one")
        [claim] = await worker.claims(1)
        assert await claim.settle("fb", b"done")
        await until(lambda: _at_most(server, 1))
        await asyncio.sleep(0.5)  # what has been handled is noted
        await server.call(*words)
        await post(server, b"two")

        await until(lambda: b"two" in worker.payloads)
        assert worker.payloads == [b"one", b"two"]
        assert "1 groups made again" in worker.backend.state().text
    assert caplog.text.count("was gone") == 1


@pytest.mark.parametrize("later", [False, True], ids=["at once", "with new entries"])
@pytest.mark.parametrize("words", [["FLUSHALL"], ["DEL", STREAM]], ids=["flush", "del"])
async def test_what_nobody_else_can_have_is_answered_all_the_same(
    server, monkeypatch, words, later
):
    """The request is known here alone; silence would be the worst answer."""
    quick(monkeypatch)
    await post(server, b"x")
    async with working(server, channels=[POOL]) as worker, server.listener("fb") as heard:
        [claim] = await worker.claims(1)
        await until(lambda: server.call("HGET", KEYS.epoch, "added"))
        await asyncio.sleep(0.5)  # a first trimming has counted the entries
        await server.call(*words)
        if later:
            await post(server, b"y")
            [_, new] = await worker.claims(2)
            await asyncio.sleep(0.5)  # renewals
        assert worker.lost == []

        assert await claim.settle("fb", b"done") is True
        await until(lambda: heard)
        if later:
            assert await new.settle("fb", b"done y") is True
            await until(lambda: len(heard) == 2)


@pytest.mark.parametrize("channel", [STREAM, POOL])
async def test_a_retry_survives_a_flush(server, monkeypatch, channel):
    """Nobody else knows the request any more."""
    quick(monkeypatch)
    await post(server, b"x")
    async with working(server, channels=[channel]) as worker:
        [claim] = await worker.claims(1)
        await server.call("FLUSHALL")
        assert await claim.retry(0.1)

        [_, again] = await worker.claims(2)
        assert worker.payloads == [b"x", b"x"]
        assert await again.settle("fb", b"done")


async def test_a_delayed_set_that_is_gone_strands_nothing(server, monkeypatch):
    """What waited there still belongs to a consumer that nobody is."""
    quick(monkeypatch)
    await post(server, b"x")
    async with working(server, channels=[POOL]) as worker:
        [claim] = await worker.claims(1)
        await claim.retry(1000)
        await server.call("DEL", KEYS.delayed("pool:dns"))

        [_, again] = await worker.claims(2)
        assert again.attempt == 2


# Connections


async def test_a_server_that_was_restarted_empty(make_server, monkeypatch):
    """What was posted after is read; what was held is answered."""
    quick(monkeypatch)
    server = make_server()
    server.start()
    await post(server, b"one")
    async with working(server, channels=[POOL]) as worker:
        [claim] = await worker.claims(1)
        server.stop()
        await disconnected(worker.backend)
        ending = asyncio.create_task(claim.settle("", b"done", "kept"))
        server.start()
        await connected(worker.backend)
        assert await ending is True
        await post(server, b"two")
        await worker.claims(2)

        assert await length(server, "kept") == 1


async def test_a_server_that_comes_later_is_found(make_server, caplog):
    """The machine starts, and the agent is faster; it is said once each way."""
    caplog.set_level("INFO")
    server = make_server()
    async with working(server) as worker:
        await asyncio.sleep(0.5)
        assert worker.backend.state().connected is False
        assert worker.backend.state().sound
        with pytest.raises(BackendError):
            await worker.backend.now()
        server.start()
        await connected(worker.backend)
        await post(server, b"x")
        await worker.claims(1)

    said = [r.getMessage() for r in caplog.records if r.name.endswith("redis_stream_calls")]
    assert [word in line for word, line in zip(("not reached", "connected"), said, strict=True)]


async def test_killed_connections_lose_nothing(server, monkeypatch):
    """Whatever was on its way: read and not heard, settled and not confirmed."""
    quick(monkeypatch)
    done = Counter()
    host = StillHost(free=20)

    async def kill():
        while True:
            await asyncio.sleep(0.02)
            await server.call("CLIENT", "KILL", "TYPE", "normal")

    async with server.listener("fb") as heard, working(server, host, [POOL]) as worker:
        await post(server, *(b"%d" % number for number in range(300)))
        killing = asyncio.create_task(kill())
        seen = 0

        async def answered():
            nonlocal seen
            claims = [(d.payload, d.claim) for d in worker.deliveries[seen:]]
            seen += len(claims)
            for payload, claim in claims:
                assert claim.taken_over is False
                assert claim.attempt == 1
                done[payload] += await claim.settle("", payload, "kept")
            return len(done) == 300

        await until(answered, 30)
        killing.cancel()

    async with server.client() as client:
        kept = Counter(fields[b"response"] for _, fields in await client.xrange("kept"))
    assert set(done.values()) == set(kept.values()) == {1}
    assert len(kept) == 300
    assert heard == []


async def test_a_lost_reply_does_not_settle_twice(make_server, monkeypatch):
    """The script has run, and its reply went into a black hole."""
    quick(monkeypatch)
    server = make_server()
    server.start(tcp=True)
    await post(server, b"x")
    async with proxied(server.port) as proxy:
        fields = {"unix_socket": None, "url": f"redis://127.0.0.1:{proxy.port}"}
        host = StillHost(free=1, counts=True)
        async with (
            working(server, host, [POOL], **fields) as worker,
            server.listener("fb") as heard,
        ):
            [claim] = await worker.claims(1)
            proxy.deafen()

            assert await claim.settle("fb", b"done") is True
            await server.publish("fb", b"fence")
            await until(lambda: b"fence" in heard)
            assert heard == [b"done", b"fence"]


async def test_what_was_read_and_not_heard_comes_again_at_once(make_server, monkeypatch):
    """It is nobody's fault: no lease is waited for, and it is still the first attempt."""
    monkeypatch.setattr(redis_stream_group, "BLOCK", 0.3)
    monkeypatch.setattr(redis_stream_calls, "REPLY_TIMEOUT", 1.0)
    server = make_server()
    server.start(tcp=True)
    async with proxied(server.port) as proxy:
        fields = {"unix_socket": None, "url": f"redis://127.0.0.1:{proxy.port}"}
        async with working(server, channels=[POOL], **fields) as worker:
            await until(lambda: _somebody_waits(server))
            proxy.deafen()
            await post(server, b"x")
            [claim] = await worker.claims(1, 7)

            assert (claim.attempt, claim.taken_over) == (1, False)
            assert await claim.settle("", b"done")


async def _somebody_waits(server):
    async with server.client() as client:
        return (await client.info("clients"))["blocked_clients"] == 1


async def test_what_is_held_is_not_begun_again_when_its_group_is_made_again(server, monkeypatch):
    """The new group hands it out once more, to the one who has it."""
    quick(monkeypatch)
    await post(server, b"one")
    async with working(server, channels=[POOL]) as worker:
        [claim] = await worker.claims(1)
        await server.call("XGROUP", "DESTROY", STREAM, "pool:dns")
        await post(server, b"two")
        await worker.claims(2)

        assert worker.payloads == [b"one", b"two"]
        assert worker.lost == []
        assert await claim.settle("", b"done")
        assert len(await pending(server)) == 1


async def test_a_server_that_hangs_is_noticed_and_found_again(server):
    """It is reached, and says nothing."""
    async with working(server) as worker:
        await connected(worker.backend)
        server.signal(signal.SIGSTOP)
        await disconnected(worker.backend, 15)
        assert worker.backend.state().sound
        server.signal(signal.SIGCONT)
        await connected(worker.backend)
        await post(server, b"x")
        await worker.claims(1)


async def test_now_is_known_while_the_server_is_away(make_server):
    """A time to live is judged by one clock, always."""
    server = make_server()
    server.start()
    async with working(server) as worker:
        await connected(worker.backend)
        before = await worker.backend.now()
        server.stop()
        after = await worker.backend.now()

    assert 0 <= after - before < 15


# All of it


@pytest.mark.concurrency
@pytest.mark.parametrize("seed", range(3))
async def test_every_request_has_one_outcome(server, monkeypatch, seed):
    """Whoever dies, sleeps, retries or gives back, at any moment."""
    quick(monkeypatch, 0.4)
    count = 300
    chance = random.Random(seed)
    outcomes = Counter()
    tasks = set()

    async def job(worker, delivery):
        await asyncio.sleep(chance.random() * 0.05)
        claim, what = delivery.claim, chance.random()
        with suppress(BackendError):  # the member has left first
            if what < 0.1:
                await claim.release()
            elif what < 0.2:
                await claim.retry(chance.random() * 0.2)
            else:
                outcomes[delivery.payload] += await claim.settle("", delivery.payload, "kept")

    class Busy(Worker):
        async def receive(self):
            async for delivery in self.backend.receive():
                task = asyncio.create_task(job(self, delivery))
                task.worker = self
                tasks.add(task)
                task.add_done_callback(tasks.discard)

    async def disturb(number):
        """A member that dies, sleeps beyond its lease, or leaves in order; then comes anew."""
        start = 0
        # Who dies while it settles may have done it, and never have known.
        while await length(server, "kept") < count:
            start += 1
            host = StillHost(identity=f"m{number}.{start}", free=10)
            worker = Busy(stream_backend(host, unix_socket=str(server.path)))
            async with serving(worker, [POOL]):
                await asyncio.sleep(0.1 + chance.random() * 0.5)
                what = chance.random()
                if what < 0.4:  # dies with all its jobs
                    for task in [task for task in tasks if task.worker is worker]:
                        task.cancel()
                    await killed(worker)
                elif what < 0.7:  # sleeps, and wakes up to late results
                    worker.backend._groups, kept = {}, worker.backend._groups
                    await asyncio.sleep(0.6)
                    worker.backend._groups = kept
                else:  # leaves in order, when its jobs have ended
                    host.free = 0
                    await asyncio.sleep(0.3)

    await post(server, *(b"%d" % number for number in range(count)))
    async with AsyncExitStack(), asyncio.TaskGroup() as group:
        for number in range(4):
            group.create_task(disturb(number))
    await asyncio.gather(*tasks, return_exceptions=True)

    async with server.client() as client:
        kept = Counter(fields[b"response"] for _, fields in await client.xrange("kept"))
    assert set(kept.values()) == {1}
    assert len(kept) == count
    assert outcomes <= kept
    assert await pending(server) == {}
