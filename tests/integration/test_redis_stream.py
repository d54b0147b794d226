"""The stream backend on a server that stays: reading, answering, giving back."""

import asyncio

import pytest

from ngcp_task_agent.backends.redis_stream import RedisStreamBackend
from ngcp_task_agent.options import Options

from .streams import (
    KEYS,
    POOL,
    STREAM,
    StillHost,
    earlier_process,
    killed,
    length,
    pending,
    post,
    quick,
    stream_backend,
    working,
)
from .waiting import until

pytestmark = pytest.mark.redis


async def test_what_was_posted_before_the_first_start_is_run(server):
    """A client need not wait for an agent."""
    await post(server, b"one", b"two")

    async with working(server) as every, working(server, channels=[POOL]) as one:
        await every.claims(2)
        await one.claims(2)

    assert every.payloads == one.payloads == [b"one", b"two"]
    assert [d.claim.pool for d in (*every.deliveries, *one.deliveries)] == ["", "", "dns", "dns"]


async def test_a_claim_says_when_it_was_posted(server):
    """By Redis's clock, for `ttl`."""
    [id] = await post(server, b"x")

    async with working(server) as worker:
        [claim] = await worker.claims(1)
        now = await worker.backend.now()

    assert claim.posted == int(id.split(b"-")[0]) / 1000
    assert 0 <= now - claim.posted < 10
    assert (claim.attempt, claim.taken_over) == (1, False)


async def test_settling_answers_acknowledges_and_keeps(server):
    """All of it in one step; the client is answered on both ways."""
    await post(server, b"x")
    async with working(server, channels=[POOL]) as worker, server.listener("fb") as heard:
        [claim] = await worker.claims(1)

        assert await claim.settle("fb", b"done", "kept") is True
        await until(lambda: heard)

    async with server.client() as client:
        [(_, fields)] = await client.xrange("kept")
        expires = await client.ttl("kept")
    assert (heard, fields) == ([b"done"], {b"response": b"done"})
    assert 3500 < expires <= 3600
    assert await pending(server) == {}


async def test_a_kept_response_rings_where_nobody_is_addressed(server):
    """Who reads the stream need not poll it."""
    await post(server, b"x")
    async with working(server) as worker, server.listener("kept") as heard:
        [claim] = await worker.claims(1)
        assert await claim.settle("", b"done", "kept")
        await until(lambda: heard)

    async with server.client() as client:
        [(id, _)] = await client.xrange("kept")
    assert heard == [id]


async def test_a_feedback_stream_that_is_none_holds_nothing_up(server, caplog):
    """Whoever named it is to blame; the request ends, and the channel is answered."""
    await server.call("SET", "kept", "x")
    await post(server, b"x")
    async with working(server, channels=[POOL]) as worker, server.listener("fb") as heard:
        [claim] = await worker.claims(1)
        assert await claim.settle("fb", b"done", "kept")
        await until(lambda: heard)

    assert await pending(server) == {}
    assert "WRONGTYPE" in caplog.text


async def test_the_last_response_leaves_after_the_earlier_ones(server):
    """They go by another connection."""
    await post(server, b"x")
    earlier = [b"%d" % number for number in range(2000)]
    async with working(server) as worker, server.listener("fb") as heard:
        [claim] = await worker.claims(1)
        for payload in earlier:
            worker.backend.deliver("fb", payload)
        await claim.settle("fb", b"last")
        await until(lambda: len(heard) == 2001)

    assert heard == [*earlier, b"last"]


async def test_a_failure_is_put_among_the_dead(server):
    """With all that is needed to look into it, or to post it again."""
    [first, second] = await post(server, b"x", b"y")
    async with working(server, channels=[POOL]) as worker:
        [one, two] = await worker.claims(2)
        await one.settle("fb", b"failed", failure="it broke")
        await two.drop("no request")

    async with server.client() as client:
        dead = [fields for _, fields in await client.xrange(KEYS.dead)]
    failed = [float(fields.pop(b"failed")) for fields in dead]
    common = {b"attempts": b"1", b"group": b"pool:dns", b"node": b"db01", b"stream": b"work"}
    assert dead == [
        {b"request": b"x", b"reason": b"it broke", b"entry": first, **common},
        {b"request": b"y", b"reason": b"no request", b"entry": second, **common},
    ]
    assert failed[0] >= one.posted
    assert await pending(server) == {}


async def test_an_entry_without_a_request_is_put_among_the_dead(server, caplog):
    """It can be answered by nobody; the next one is read."""
    async with server.client() as client:
        await client.xadd(STREAM, {"requst": b"x"})
    await post(server, b"y")
    async with working(server, channels=[POOL]) as worker:
        [claim] = await worker.claims(1)
        await claim.drop()

        await until(lambda: length(server, KEYS.dead))
        assert worker.payloads == [b"y"]
    assert await pending(server) == {}
    assert "no field 'request'" in caplog.text


async def test_a_retry_comes_back_when_it_is_due_as_the_next_attempt(server, monkeypatch):
    """Not earlier; the attempt fences off what the earlier one still does."""
    quick(monkeypatch)
    await post(server, b"x")
    now = asyncio.get_running_loop().time
    async with working(server, channels=[POOL]) as worker:
        [claim] = await worker.claims(1)
        start = now()
        assert await claim.retry(0.5) is True
        [_, again] = await worker.claims(2)
        waited = now() - start

        assert (again.attempt, again.taken_over) == (2, False)
        assert 0.45 < waited < 3
        assert await again.settle("fb", b"done")
    assert await pending(server) == {}


async def test_what_was_released_was_no_attempt(server, monkeypatch):
    """It was not started: somebody else starts it for the first time."""
    quick(monkeypatch)
    await post(server, b"x")
    async with working(server, StillHost(identity="m1"), [POOL]) as one:
        [claim] = await one.claims(1)
        one.backend.host.free = 0
        assert await claim.release() is True
        async with working(server, StillHost(identity="m2"), [POOL]) as two:
            [again] = await two.claims(1)
            assert (again.attempt, again.taken_over) == (1, False)
            assert await again.settle("fb", b"done")


@pytest.mark.parametrize("way", ["settle", "drop", "retry", "release"])
async def test_a_claim_given_up_cannot_be_given_up_by_its_old_owner(server, monkeypatch, way):
    """An unguarded XACK or XCLAIM would succeed."""
    quick(monkeypatch)
    await post(server, b"x")
    async with working(server, StillHost(identity="m1"), [POOL]) as one:
        [old] = await one.claims(1)
        one.backend.host.free = 0
        # Somebody else has it, and has heard nothing of us for longer than a lease.
        await server.call("XCLAIM", STREAM, "pool:dns", "other", "0", old.id)
        async with server.listener("fb") as heard:
            words = {"settle": ("fb", b"late"), "retry": (0.1,)}.get(way, ())
            assert await getattr(old, way)(*words) is False
            await server.publish("fb", b"fence")
            await until(lambda: heard)

    assert heard == [b"fence"]
    [(owner, _)] = (await pending(server)).values()
    assert owner == b"other"


async def test_a_burst_that_is_passed_over_costs_few_commands(server):
    """Most requests on a broadcast stream are for others."""
    await post(server, *(b"%d" % number for number in range(640)))
    async with working(server) as worker:
        claims = await worker.claims(640)
        before = await server.call("INFO", "commandstats")
        assert all(await asyncio.gather(*(claim.drop() for claim in claims)))
        after = await server.call("INFO", "commandstats")

    def calls(stats):
        return sum(stats[name]["calls"] for name in ("cmdstat_evalsha", "cmdstat_eval")
                   if name in stats)  # fmt: skip

    assert calls(after) - calls(before) < 10
    assert await pending(server, "node:db01:m1") == {}


async def test_no_more_is_taken_than_there_is_room_for(server):
    """The rest is left to others."""
    await post(server, *(b"%d" % number for number in range(10)))
    async with working(server, StillHost(free=3, counts=True), [POOL]) as worker:
        await worker.claims(3)
        assert len(await pending(server)) == 3
        async with working(server, StillHost(identity="m2"), [POOL]) as other:
            claims = await other.claims(7)

    assert len(claims) == 7


async def test_room_that_is_made_is_used_at_once(server):
    """A pool with little room works through many requests as fast as it can."""
    await post(server, *(b"x" for _ in range(200)))
    now = asyncio.get_running_loop().time
    start = now()
    async with working(server, StillHost(free=2, counts=True), [POOL]) as worker:
        ended = 0
        while ended < 200:
            claims = await worker.claims(ended + 1)
            for claim in claims[ended:]:
                await claim.settle("fb", b"done")
                worker.backend.host.free += 1
            ended = len(claims)

    assert now() - start < 20  # half a second for each two would be 50


async def test_who_is_no_member_does_not_take_part(server, monkeypatch):
    """It is asked anew: a node becomes active, and another takes over."""
    quick(monkeypatch)
    host = StillHost()
    async with working(server, host, ["pool:dns work *|state=active"]) as worker:
        await post(server, b"one")
        host.facts = {"state": frozenset({"active"})}
        [claim] = await worker.claims(1)
        await claim.settle("fb", b"done")
        host.facts = {"state": frozenset({"standby"})}
        await asyncio.sleep(0.5)  # what is to be seen is that nothing comes
        await post(server, b"two")
        await asyncio.sleep(0.5)

        assert worker.payloads == [b"one"]


async def test_one_member_of_a_pool_runs_each(server):
    """And all of them take part."""
    payloads = [b"%d" % number for number in range(200)]
    async with (
        working(server, StillHost(identity="m1", free=5), [POOL]) as one,
        working(server, StillHost(identity="m2", free=5), [POOL]) as two,
    ):
        await post(server, *payloads)
        await until(lambda: len(one.deliveries) + len(two.deliveries) == 200, 10)

        assert sorted(one.payloads + two.payloads) == sorted(payloads)
        assert one.payloads
        assert two.payloads


async def test_a_new_node_takes_what_is_still_kept(server):
    """It was installed after the request, and is meant by it."""
    await post(server, b"x")
    async with working(server, StillHost("db01", "m1")) as one:
        [claim] = await one.claims(1)
        await claim.settle("fb", b"done")

    async with working(server, StillHost("db02", "m2")) as two:
        assert len(await two.claims(1)) == 1


async def test_two_nodes_of_one_name_both_take_it(server):
    """Names are not unique; machines are."""
    await post(server, b"x")
    hosts = StillHost("db01", "m1"), StillHost("db01", "m2")
    async with working(server, hosts[0]) as one, working(server, hosts[1]) as two:
        await one.claims(1)
        await two.claims(1)


async def test_stop_gives_back_what_the_agent_has_not_seen(server, monkeypatch):
    """And what it has seen is the agent's to give back."""
    quick(monkeypatch)
    await post(server, b"one", b"two", b"three")
    backend = stream_backend(unix_socket=str(server.path))
    backend.listen([POOL])
    receiving = backend.receive()
    await anext(receiving)
    await until(lambda: backend._inbox.qsize() == 2)

    await backend.stop()
    with pytest.raises(StopAsyncIteration):
        await anext(receiving)
    await backend.close()

    owners = sorted(await pending(server) and (await pending(server)).values())
    assert [owner == b"-delayed" for owner, _ in owners] == [True, True, False]
    async with working(server, StillHost(identity="m2"), [POOL]) as other:
        claims = await other.claims(2, 3)
        assert [(claim.attempt, claim.taken_over) for claim in claims[:2]] == [(1, False)] * 2


async def test_a_worker_that_leaves_in_order_leaves_no_consumer(server):
    """Every start of an agent makes one."""
    await post(server, b"x")
    async with working(server, channels=[POOL]) as worker:
        [claim] = await worker.claims(1)
        await claim.settle("fb", b"done")

    assert await server.call("XINFO", "CONSUMERS", STREAM, "pool:dns") == []


async def test_dead_consumers_are_removed(server, monkeypatch):
    """Once they hold nothing."""
    quick(monkeypatch)
    from ngcp_task_agent.backends import redis_stream_group

    monkeypatch.setattr(redis_stream_group, "REST", 0.5)
    async with server.client() as client:
        await client.xgroup_create(STREAM, "pool:dns", "0", mkstream=True)
        await client.xgroup_createconsumer(STREAM, "pool:dns", "gone")
    async with working(server, channels=[POOL]) as worker:
        await until(lambda: worker.backend.state().connected)

        async def gone():
            async with server.client() as client:
                found = await client.xinfo_consumers(STREAM, "pool:dns")
            return b"gone" not in [one["name"] for one in found]

        await until(gone)


# Being taken over


async def test_a_dead_workers_requests_are_taken_over_with_the_next_attempt(server, monkeypatch):
    """After its lease, and it is told that somebody has let it down."""
    quick(monkeypatch)
    await post(server, b"x")
    now = asyncio.get_running_loop().time
    async with working(server, StillHost(identity="m1"), [POOL]) as one:
        [old] = await one.claims(1)
        await killed(one)
        start = now()
        async with working(server, StillHost(identity="m2"), [POOL]) as two:
            [new] = await two.claims(1)

            assert 0.5 < now() - start < 2.5
            assert (new.attempt, new.taken_over) == (2, True)
            assert await new.settle("fb", b"done")
    assert old.attempt == 1


async def test_while_it_beats_nobody_takes_over(server, monkeypatch):
    """And beating is no attempt."""
    quick(monkeypatch)
    await post(server, b"x")
    async with (
        working(server, StillHost(identity="m1", free=1), [POOL]) as one,
        working(server, StillHost(identity="m2", free=0), [POOL]) as two,
    ):
        [claim] = await one.claims(1)
        one.backend.host.free = 0
        two.backend.host.free = 10
        await asyncio.sleep(3)  # three leases

        assert two.deliveries == one.lost == []
        [(_, count)] = (await pending(server)).values()
        assert count == 1
        assert await claim.settle("fb", b"done")


async def test_who_slept_beyond_the_lease_is_told_and_refused(server, monkeypatch):
    """A late result must not follow another's."""
    quick(monkeypatch)
    await post(server, b"x")
    async with working(server, StillHost(identity="m1"), [POOL]) as one:
        [old] = await one.claims(1)
        one.backend.host.free = 0
        await sleep(one)
        async with working(server, StillHost(identity="m2"), [POOL]) as two:
            [new] = await two.claims(1)
            two.backend.host.free = 0
            wake(one)
            await until(lambda: one.lost == [old])

            assert await old.settle("fb", b"late") is False
            assert await new.settle("fb", b"done") is True


async def sleep(worker):
    """No sign of life any more."""
    worker.backend._groups, worker.kept = {}, worker.backend._groups
    await asyncio.sleep(0)


def wake(worker):
    worker.backend._groups = worker.kept


async def test_a_node_that_is_back_takes_its_own_at_once(server, monkeypatch):
    """Its earlier process is surely dead; no lease is waited for."""
    await post(server, b"x")
    async with working(server, StillHost(identity="m1")) as one:
        await one.claims(1)
        await killed(one)
        earlier_process(monkeypatch)
        async with working(server, StillHost(identity="m1")) as again:
            [claim] = await again.claims(1, 2)

            assert (claim.attempt, claim.taken_over) == (2, True)


async def test_somebody_elses_release_of_what_was_let_down_still_says_so(server, monkeypatch):
    """The first attempt may have had its effects: who starts it has to know."""
    quick(monkeypatch)
    await post(server, b"x")
    async with working(server, StillHost(identity="m1"), [POOL]) as one:
        await one.claims(1)
        await killed(one)
        async with working(server, StillHost(identity="m2"), [POOL]) as two:
            [claim] = await two.claims(1)
            await claim.release()
            [_, again] = await two.claims(2)

            assert (again.attempt, again.taken_over) == (2, True)


@pytest.mark.parametrize("noticed", [True, False])
@pytest.mark.parametrize("down", [True, False])
async def test_what_was_handed_out_unheard_comes_as_it_would_have(
    server, monkeypatch, noticed, down
):
    """At once if the connection broke, else after a lease; the first attempt, if it was
    somebody's, may have had effects."""
    quick(monkeypatch)
    [id] = await post(server, b"x")
    host = StillHost(free=0)
    async with working(server, host, [POOL]) as worker:
        groups = worker.backend._groups
        await until(lambda: POOL in groups and groups[POOL].place.epoch)
        me = groups[POOL].place.consumer
        reader = "other" if down else me
        await server.call("XREADGROUP", "GROUP", "pool:dns", reader, "STREAMS", STREAM, ">")
        if down:
            await server.call("XCLAIM", STREAM, "pool:dns", me + "!", "0", id)
        groups[POOL]._unheard = noticed
        host.free = 1
        [claim] = await worker.claims(1)

        assert (claim.attempt, claim.taken_over) == ((2, True) if down else (1, False))
        assert await claim.settle("fb", b"done")


# Options


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({}, "ngcp-task-agent-stream"),
        ({"control_stream": "work"}, "work"),
        ({"control_stream": "work{eu}", "delivery": "broadcast"}, "work{eu}"),
        ({"control_stream": "work", "delivery": "anycast", "pool": "dns"}, "pool:dns work"),
        (
            {"delivery": "anycast", "pool": "dns", "members": " db* | state=active ,a"},
            "pool:dns ngcp-task-agent-stream db*|state=active,a",
        ),
    ],
)
def test_a_subscription_tells_all_that_matters(fields, text):
    """The same options give the same text, others another."""
    options = Options(fields, "tasks/a.yml", "backend_options.")

    assert RedisStreamBackend(Options({}, "b.yml")).subscription(options) == text
    assert options.problems == options.unknown() == []


def test_the_backends_file_may_say_it_for_all_tasks():
    """A task that names anything of it says all of it."""
    common = {"control_stream": "work", "delivery": "anycast", "pool": "dns"}
    options = Options(common, "backends/redis_stream.yml")
    backend = RedisStreamBackend(options)

    assert options.problems == options.unknown() == []
    assert backend.subscription(Options({}, "tasks/a.yml")) == "pool:dns work"
    assert backend.subscription(Options({"control_stream": "other"}, "tasks/b.yml")) == "other"


def test_members_that_differ_between_tasks_of_one_pool_are_told():
    """One of them would reject the requests of the other; each file counts as last read."""
    backend = RedisStreamBackend(Options({}, "b.yml"))
    pool = {"control_stream": "work", "delivery": "anycast", "pool": "dns"}

    def notes(file, **fields):
        options = Options({**pool, **fields}, file)
        backend.subscription(options)
        assert options.problems == []
        return " ".join(map(str, options.notes))

    assert notes("tasks/a.yml", members="db*") == ""
    said = notes("tasks/b.yml")
    assert "'db*' in tasks/a.yml" in said
    assert "members" in said
    assert notes("tasks/c.yml", pool="other") == ""
    assert "tasks/b.yml" in notes("tasks/a.yml", members="db01")
    assert notes("tasks/a.yml") == ""


@pytest.mark.parametrize(
    ("fields", "key", "says"),
    [
        ({"delivery": "anycast"}, "pool", "found nothing; expected the pool's name"),
        ({"delivery": "anycast", "pool": "a b"}, "pool", "found 'a b'"),
        ({"pool": "dns"}, "pool", "without 'delivery: anycast'"),
        ({"members": "db*"}, "members", "without 'delivery: anycast'"),
        ({"delivery": "anycast", "pool": "a", "members": "a||"}, "members", "bad element"),
        ({"delivery": "both"}, "delivery", "expected one of broadcast, anycast"),
        ({"control_stream": "a b"}, "control_stream", "without blanks"),
        ({"control_stream": "a}b"}, "control_stream", "one {tag} at most"),
        ({"control_stream": "ngcp-task-agent:{a}:dead"}, "control_stream", "not for requests"),
        ({"control_stream": "ngcp-task-agent-feedback:a"}, "control_stream", "not for requests"),
    ],
)
def test_a_mistake_is_found_when_the_file_is_read(fields, key, says):
    """Not when a request comes."""
    options = Options(fields, "tasks/a.yml", "backend_options.")

    RedisStreamBackend(Options({}, "b.yml")).subscription(options)

    [problem] = options.problems
    assert problem.key == f"backend_options.{key}"
    assert says in str(problem)
