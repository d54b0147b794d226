"""The bus goes away and comes back: the daemon heals itself and forgets no answer."""

import time

import pytest

from .harness import World, command, free_port
from .processes import marked, until
from .proxy import Proxy
from .wire import CONTROL_CHANNEL, answered

pytestmark = pytest.mark.redis

HEALED = 15.0  # seconds until a lost bus is noticed and back in use
TASKS = {"hello": command("/bin/echo", "hello")}


def gated(world):
    """Return a task whose job ends when the returned file appears, and a file it leaves then."""
    gate, ended = world.place / "gate", world.place / "ended"
    lines = (f'while ! test -e "{gate}"; do sleep 0.02; done', "echo late news", f'touch "{ended}"')
    return command(world.script("gated", *lines), timeout=60), gate, ended


def test_redis_is_restarted(world):
    """The server is gone and back on the same port: answers again, and lives on."""
    daemon = world.daemon(tasks=TASKS)

    world.server.stop()
    until(lambda: daemon.log, 10, "a word about it in the log")
    world.server.start()

    listener = world.listen()
    answered(listener, "sp1", HEALED)
    assert listener.ask("hello", "sp1")[-1]["data"] == "hello\n"
    assert daemon.alive


def test_a_result_of_the_time_without_redis_is_delivered(world):
    """A job that ends while the bus is away is answered to a client that subscribed again."""
    task, gate, ended = gated(world)
    with Proxy(world.server.port) as proxy:
        daemon = world.daemon(port=proxy.port, tasks={"gated": task})
        with world.listener() as listener:
            ref = listener.send("gated", "sp1")
            listener.hear_until(lambda: listener.statuses(ref) == ["accepted"])
            # What is cut off unconfirmed is sent again; a later answer shows that
            # this one is confirmed.
            answered(listener, "sp1", 5)
            channel = listener.channel

        proxy.shut()
        world.server.stop()
        gate.touch()
        until(ended.exists, 5, "the end of the job")
        world.server.start()
        # The client is back before the daemon can be.
        with world.listener(channel) as again:
            proxy.open()
            bodies = again.talk(ref, seconds=HEALED)
            answered(again, "sp1", HEALED)

            assert [body["status"] for body in bodies] == ["done"]
            assert bodies[0]["data"] == "late news\n"
            assert again.statuses(ref) == ["done"]
        assert daemon.alive


def test_redis_is_absent_at_the_start(world):
    """The daemon starts, says so once, and connects when it comes."""
    port = world.server.port
    world.server.stop()
    daemon = world.daemon(tasks=TASKS, ready=False)
    until(lambda: daemon.log.count("\n") >= 1, 10, "a word about it in the log")
    end = time.monotonic() + 4
    until(lambda: time.monotonic() > end or not daemon.alive, 5)
    assert daemon.alive
    assert sum(str(port) in line or "redis" in line for line in daemon.log.splitlines()) <= 4

    world.server.start()

    with world.listener() as listener:
        answered(listener, daemon.dst, HEALED)


def test_a_dead_network_is_noticed_while_the_bus_is_silent(world):
    """Both directions swallow, nothing is closed: a new connection within 15 s."""
    with Proxy(world.server.port) as proxy:
        daemon = world.daemon(port=proxy.port, tasks=TASKS)
        connections = proxy.accepted

        proxy.swallow()
        start = time.monotonic()
        until(lambda: proxy.accepted > connections, HEALED + 1, "a new connection")
        print(f"noticed after {time.monotonic() - start:.1f} s")

        with world.listener() as listener:
            answered(listener, "sp1", 5)
            assert listener.ask("hello", "sp1")[-1]["data"] == "hello\n"
        assert daemon.alive


def test_a_killed_subscription_comes_back(world):
    """CLIENT KILL TYPE pubsub, three times."""
    daemon = world.daemon(tasks=TASKS)

    for _ in range(3):
        client = world.server.client()
        assert client.client_kill_filter(_type="pubsub") >= 1
        client.close()
        with world.listener() as listener:
            answered(listener, "sp1", HEALED)

    assert daemon.alive


def test_a_killed_publisher_loses_no_answer(world):
    """Only the connection that publishes is closed while a job runs."""
    task, gate, _ = gated(world)
    world.daemon(tasks={"gated": task})
    listener = world.listen()
    ref = listener.send("gated", "sp1")
    listener.hear_until(lambda: listener.statuses(ref) == ["accepted"])

    client = world.server.client()
    client.client_kill_filter(_type="normal", skipme=True)
    client.close()
    gate.touch()

    assert [body["status"] for body in listener.talk(ref, seconds=HEALED)] == ["accepted", "done"]


@pytest.mark.parametrize("key", ["db 40", "url", "url of a socket", "host name"])
def test_ways_to_name_the_bus(world, key):
    """A db beyond the server's is no reason to fail: pub/sub needs no SELECT."""
    port = world.server.port
    backend = {
        "db 40": {"host": "127.0.0.1", "port": port, "db": 40},
        "url": {"url": f"redis://127.0.0.1:{port}/40"},
        "url of a socket": {"url": f"unix://{world.server.socket}"},
        "host name": {"type": "redis", "host": "localhost", "port": port},
    }[key]

    daemon = world.daemon(backend=backend, tasks=TASKS)

    assert daemon.alive


@pytest.mark.parametrize("key", ["password", "password_file"])
def test_a_password_lets_it_in_and_is_not_shown(key):
    """Given itself or by a file, it is in no log and in no process list."""
    with World(password="s3cret") as world:
        secret = world.file("secret", "s3cret\n", mode=0o600)
        value = "s3cret" if key == "password" else str(secret)
        backend = {"host": "127.0.0.1", "port": world.server.port, key: value}

        daemon = world.daemon(backend=backend, tasks=TASKS)

        assert "s3cret" not in daemon.log
        # The server of this test has it in its own argument vector.
        assert daemon.pid not in marked("s3cret")


def test_one_subscription_however_many_tasks_share_a_channel(world):
    """Ten tasks on one channel, one subscriber; a second channel is one more."""
    tasks = {f"hello{n}": TASKS["hello"] for n in range(10)}
    tasks["elsewhere"] = {**TASKS["hello"], "backend_options": {"control_channel": "elsewhere"}}
    world.daemon(tasks=tasks)
    client = world.server.client()

    assert dict(client.pubsub_numsub(CONTROL_CHANNEL, "elsewhere")) == {
        CONTROL_CHANNEL.encode(): 1,
        b"elsewhere": 1,
    }
    client.close()


def test_redis_is_away_when_the_daemon_stops(world):
    """A stop does not hang on answers that cannot be delivered."""
    task, _, _ = gated(world)
    daemon = world.daemon(tasks={"gated": task})
    with world.listener() as listener:
        ref = listener.send("gated", "sp1")
        listener.hear_until(lambda: listener.statuses(ref) == ["accepted"])

    world.server.stop()

    assert daemon.stop() == 0


def test_a_port_nobody_listens_on(world):
    """Stopped while it never had a bus: exit 0 all the same."""
    daemon = world.daemon(port=free_port(), tasks=TASKS, ready=False)
    until(lambda: daemon.log, 10, "a word about it in the log")

    assert daemon.stop() == 0
