"""The Redis backend behind sentinels: they say who is the master, also after the next failover."""

import time

import pytest
from redis.asyncio import Redis

from ngcp_task_agent.backends.redis_link import RedisLink
from ngcp_task_agent.backends.redis_server import RedisServer
from ngcp_task_agent.errors import BackendError
from ngcp_task_agent.options import Options

from .backends import CONTROL, connected, receiving, redis_backend
from .reaching import attempted, warnings
from .redis_fleet import AWAY, Load, Watched, load, running
from .redis_server import free_port
from .waiting import until

pytestmark = pytest.mark.redis

BACK = 10.0  # seconds within which a failover has to be over for an agent

each_program = pytest.mark.parametrize("binary", ["redis-server", "valkey-server"])


def server_of(options):
    """What the backend makes of *options*, without a mistake."""
    read = Options(options, "backends/redis.yml")
    server = RedisServer(read)
    read.close()
    assert not read.problems
    return server


def master_client(fleet):
    """A client of the tests' own, which follows the master as any other does."""
    return server_of(fleet.options).commands(reply_timeout=1.0)


@each_program
async def test_a_failover_under_load(place, binary):
    """The master is killed: the agent is back at the new one, hears all that is posted
    from then on, and its answers are heard."""
    async with running(Watched(binary, place)) as fleet:
        backend = redis_backend(**fleet.options)
        async with receiving(backend) as received, load(master_client(fleet), CONTROL) as posted:
            await connected(backend)
            await until(lambda: len(received) > 20, 5, "requests before")
            began = time.monotonic()
            fleet.master.kill()
            await until(lambda: not backend.state().connected, 5, "noticed")
            await connected(backend, BACK)
            back = time.monotonic()
            assert await fleet.named() == fleet.replica.port
            await until(lambda: len(posted.since(back)) > 50, BACK, "posted after")
            after = posted.since(back)

            await until(lambda: after <= numbers(received), 5, "all that was posted after")
            assert back - began < BACK
            await _answered(fleet.replica, backend)
            assert not any(delivery.local for delivery in received)


def numbers(received):
    return {int(delivery.payload) for delivery in received}


async def _answered(server, backend):
    """Responses are heard at *server*, in order; what was kept meanwhile is, too."""
    async with Redis(**server.kwargs) as client, client.pubsub() as pubsub:
        await pubsub.subscribe("fb")
        assert (await pubsub.get_message(timeout=5))["type"] == "subscribe"
        for number in range(20):
            backend.deliver("fb", str(number).encode())
        heard = [(await pubsub.get_message(timeout=5))["data"] for _ in range(20)]
    assert heard == [str(number).encode() for number in range(20)]


async def test_responses_of_the_failover_itself_arrive(place):
    """What an agent has to say while there is no master waits for the next one."""
    async with running(Watched("redis-server", place)) as fleet:
        backend = redis_backend(**fleet.options)
        async with receiving(backend), Redis(**fleet.replica.kwargs) as client:
            await connected(backend)
            backend.deliver("fb", b"before")
            await backend.flush("fb")
            fleet.master.kill()
            for number in range(50):
                backend.deliver("fb", str(number).encode())
            async with client.pubsub() as pubsub:
                await pubsub.subscribe("fb")
                heard = await _data(pubsub, 50)
        assert heard == [str(number).encode() for number in range(50)]


async def _data(pubsub, count):
    found = []
    end = time.monotonic() + BACK + 5
    while len(found) < count and time.monotonic() < end:
        try:
            message = await pubsub.get_message(ignore_subscribe_messages=True, timeout=0.2)
        except AWAY:  # a replica that becomes the master hangs up; the library subscribes again
            continue
        if message:
            found.append(message["data"])
    return found


async def test_one_sentinel_is_enough_and_a_replica_is_not(place, caplog):
    """Two of the three are gone. Then the last one is told wrong: what it names is asked
    for its role, refused, and waited for."""
    async with running(Watched("redis-server", place)) as fleet:
        for sentinel in fleet.sentinels[:2]:
            sentinel.kill()
        backend = redis_backend(**fleet.options)
        async with receiving(backend):
            await connected(backend)
        fleet.sentinels[2].kill()
        await _sentinel_for(fleet, fleet.replica)
        backend = redis_backend(**fleet.options)
        async with receiving(backend):
            await until(attempted(backend), 10)
            assert not backend.state().connected
            assert any("is a slave, no master" in line for line in warnings(caplog))
            await fleet.replica.call("REPLICAOF", "NO", "ONE")
            await connected(backend, BACK)


async def _sentinel_for(fleet, server):
    """The last sentinel, born again with the belief that *server* is the master."""
    sentinel = fleet.sentinels[2]
    path = sentinel.place / "sentinel.conf"
    path.write_text(
        f"port {sentinel.port}\nsentinel monitor {fleet.NAME} 127.0.0.1 {server.port} 2\n"
    )
    sentinel.start(path, "--sentinel")
    await sentinel.ready()


async def test_commands_follow_the_master(place):
    """A client for keys finds the new master by itself, and sees what was written before."""
    async with running(Watched("redis-server", place)) as fleet:
        client = master_client(fleet)
        await client.set("key", b"kept")
        await until(lambda: client.wait(1, 100), what="replicated")
        fleet.master.kill()
        await until(lambda: _written(client), BACK, "written to the new master")
        assert await client.get("key") == b"kept"
        await client.aclose()


async def _written(client):
    try:
        return await client.set("other", b"x")
    except AWAY:
        return False


async def test_a_client_asks_by_sentinels_too(place):
    """`ngcp-task` reads the same file."""
    async with running(Watched("redis-server", place)) as fleet:
        backend = redis_backend(**fleet.options)
        link = RedisLink(fleet.options)
        async with receiving(backend) as received:
            await connected(backend)
            await link.open()
            await link.subscribe("fb")
            assert await link.publish(CONTROL, b"request") == 1
            await until(lambda: received)
            backend.deliver("fb", b"response")
            assert await link.receive() == b"response"
            await link.close()


async def test_sentinels_with_a_login_of_their_own(place, caplog):
    """Without it, said so; with it, from a file as well."""
    words = ("--requirepass", "secret", "--masterauth", "secret")
    place.joinpath("password").write_text("secret\n")
    login = {"sentinel_password_file": str(place / "password")}
    async with running(Watched("redis-server", place, *words, kwargs={"password": "secret"})) as f:
        options = {**f.options, "password": "secret"}
        backend = redis_backend(**options)
        async with receiving(backend):
            await until(attempted(backend), 10)
            assert not backend.state().connected
        assert "Authentication required" in warnings(caplog)[0]
        assert "secret" not in caplog.text
        for own in (login, {"sentinel_password": "secret"}):
            backend = redis_backend(**options, **own)
            async with receiving(backend) as received:
                await connected(backend)
                await f.master.call("PUBLISH", CONTROL, b"x")
                await until(lambda heard=received: heard)


async def test_no_sentinel_there(caplog):
    """Said once, with the master's name in it; a client is told so."""
    options = {"sentinels": [f"127.0.0.1:{free_port()}"], "master": "bus"}
    backend = redis_backend(**options)

    async with receiving(backend):
        await until(attempted(backend), 10)
    with pytest.raises(BackendError, match="no master 'bus' found"):
        await RedisLink(options).open()

    assert ["master bus" in line for line in warnings(caplog)] == [True]


@pytest.mark.parametrize(
    ("fields", "wrong"),
    [
        ({"sentinels": ["a:1"]}, {"master"}),
        ({"sentinels": ["a"], "master": "m"}, {"sentinels.0"}),
        ({"sentinels": ["a:1", "b:99999"], "master": "m"}, {"sentinels.1"}),
        ({"sentinels": [], "master": "m"}, {"sentinels"}),
        ({"sentinels": ["a:1"], "master": "m", "cluster": ["b:1"]}, {"cluster"}),
        ({"sentinels": ["a:1"], "master": "m", "host": "a"}, {"host"}),
        ({"cluster": ["redis://a:1"]}, {"cluster.0"}),
        ({"cluster": ["a:1"], "url": "redis://a"}, {"url"}),
        ({"master": "m"}, {"master"}),
        ({"sentinel_password": "x"}, {"sentinel_password"}),
        ({"sentinels": ["a:1"], "master": "m", "sentinel_password_file": "/no"},
         {"sentinel_password_file"}),
    ],
)  # fmt: skip
def test_mistakes_are_found_when_the_file_is_loaded(fields, wrong):
    """Each where it is, and nothing else."""
    options = Options(fields, "backends/redis.yml")

    RedisServer(options)

    assert {problem.key for problem in options.problems} == wrong


@pytest.mark.parametrize("text", ["192.0.2.1:26379", "[2001:db8::1]:26379", "sentinel-1.example:1"])
def test_addresses(text):
    """Names, and addresses of either kind."""
    server = server_of({"sentinels": [text], "master": "m"})

    assert str(server) == f"master m of sentinels {text}"
    assert not server.local


def test_the_load_counts_what_was_posted_since():
    """Strictly: what was posted before is nobody's promise."""
    one = Load(None, CONTROL)
    one.sent = {1: 10.0, 2: 11.0}

    assert one.since(10.0) == {2}
