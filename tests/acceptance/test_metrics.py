"""What Prometheus and a load balancer are told by a real daemon on a real bus."""

import os
import signal
import stat
import time
from pathlib import Path

import pytest

from .durable import durable
from .harness import command, write_file
from .processes import until
from .proxy import Proxy
from .scrape import Monitor, library
from .wire import CONTROL_CHANNEL

pytestmark = pytest.mark.redis

NOTICED = 4.0  # seconds until readiness knows: 2 for an answer, 1 for a look that is kept
TASKS = {"hello": command("/bin/echo", "hello"), "wrong": command("/bin/false")}


@pytest.fixture(autouse=True)
def needs_the_library():
    library()


def watched(world, monitor=None, tasks=TASKS, agent=None, **parts):
    """A daemon and who watches it."""
    monitor = monitor or Monitor()
    settings = {"metrics": {"address": monitor.address}, **(agent or {})}
    return world.daemon(tasks=tasks, agent=settings, **parts), monitor


def test_nothing_listens_where_it_is_off(world):
    """Who does not monitor opens nothing to anybody."""
    off = world.daemon(tasks=TASKS)
    on, _ = watched(world)

    assert listening(off.pid) == 0
    assert listening(on.pid) == 1


def listening(pid):
    """How many TCP sockets of a process take connections."""
    links = [os.readlink(path) for path in Path(f"/proc/{pid}/fd").iterdir()]
    own = {link[8:-1] for link in links if link.startswith("socket:")}
    rows = [line.split() for name in ("tcp", "tcp6")
            for line in Path(f"/proc/{pid}/net/{name}").read_text().splitlines()[1:]]  # fmt: skip
    return sum(row[3] == "0A" and row[9] in own for row in rows)


def test_requests_are_counted_by_task_and_outcome(world):
    """What was asked, and what became of it."""
    _, monitor = watched(world)
    listener = world.listen()

    for _ in range(3):
        listener.ask("hello", "sp1")
    listener.ask("wrong", "sp1")
    listener.ask("no_such_task", "sp1")
    listener.send("hello", "elsewhere")
    listener.redis.publish(CONTROL_CHANNEL, "no request")
    listener.fence()

    monitor.wait_number(3, "requests_total", task="hello", outcome="done")
    numbers = monitor.numbers()
    counted = {key: value for key, value in numbers.items() if key[0] == "requests_total"}
    assert {(dict(k[1])["task"], dict(k[1])["outcome"]): v for k, v in counted.items() if v} == {
        ("hello", "done"): 3,
        ("wrong", "error"): 1,
        ("not configured", "rejected"): 1,
        ("agent.ping", "done"): numbers["requests_total", labels("agent.ping", outcome="done")],
    }
    assert numbers["job_failures_total", labels("wrong", cause="error")] == 1
    assert numbers["job_duration_seconds_count", labels("hello")] == 3
    assert 0 < numbers["job_duration_seconds_sum", labels("hello")] < 30
    assert numbers["job_output_bytes_total", labels("hello")] == 3 * len("hello\n")
    assert numbers["requests_passed_over_total", ()] == 1
    assert numbers["bad_input_total", ()] == 1


def labels(task, **others):
    return tuple(sorted({"task": task, **others}.items()))


def test_names_that_clients_choose_are_no_labels(world):
    """Else whoever may publish could fill the daemon's memory, and Prometheus'."""
    _, monitor = watched(world)
    listener = world.listen()

    listener.talk_all([listener.send(f"chosen_{number}", "sp1") for number in range(50)])

    monitor.wait_number(50, "requests_total", task="not configured", outcome="rejected")
    assert "chosen" not in monitor.get("/metrics")[1]


def test_what_runs_and_what_waits_is_shown(world):
    """Saturation is seen while it lasts."""
    gate = world.place / "gate"
    waits = world.script("waits", f'while ! test -e "{gate}"; do sleep 0.02; done')
    _, monitor = watched(world, tasks={"waits": command(waits, timeout=60, max_running=2)})
    listener = world.listen()

    refs = [listener.send("waits", "sp1") for _ in range(5)]

    monitor.wait_number(2, "jobs_running", task="waits")
    assert monitor.number("jobs_queued", task="waits") == 3
    assert monitor.number("jobs_running_limit", task="waits") == 2
    gate.touch()
    listener.talk_all(refs)
    monitor.wait_number(0, "jobs_running", task="waits")
    assert monitor.number("jobs_queued", task="waits") == 0


def test_readiness_follows_a_redis_that_stops_and_comes_back(world):
    """503 names the backend; the process itself is alive all the time."""
    _, monitor = watched(world)
    monitor.wait("/readyz", 200)
    assert monitor.number("bus_reached", backend="redis") == 1

    world.server.stop()
    body = monitor.wait("/readyz", 503, NOTICED)
    assert body.startswith("backend redis is not reached")
    assert monitor.get("/livez") == (200, "ok\n")
    monitor.wait_number(0, "bus_reached", backend="redis")
    assert monitor.number("ready") == 0

    world.server.start()
    monitor.wait("/readyz", 200, 15)
    monitor.wait_number(1, "bus_reconnects_total", backend="redis")


def test_an_agent_that_stops_is_alive_and_not_ready(world):
    """A load balancer sends nothing more, and nobody kills it while its jobs end."""
    gate = world.place / "gate"
    waits = world.script("waits", f'while ! test -e "{gate}"; do sleep 0.02; done')
    daemon, monitor = watched(
        world, tasks={"waits": command(waits, timeout=60)}, agent={"grace": 30}
    )
    listener = world.listen()
    ref = listener.send("waits", "sp1")
    monitor.wait_number(1, "jobs_running", task="waits")

    daemon.signal(signal.SIGTERM)

    assert monitor.wait("/readyz", 503) == "stopping\n"
    assert monitor.get("/livez")[0] == 200
    gate.touch()
    assert listener.talk(ref)[-1]["status"] == "done"
    assert daemon.process.wait(20) == 0


def test_readiness_notices_a_server_that_hangs(world):
    """The connection stands, and the kernel takes what is sent: only an answer proves it."""
    _, monitor = watched(world)
    monitor.wait("/readyz", 200)

    began = time.monotonic()
    world.server.process.send_signal(signal.SIGSTOP)
    try:
        body = monitor.wait("/readyz", 503, NOTICED)
        print(f"noticed after {time.monotonic() - began:.2f} s: {body.strip()}")
        assert "backend redis does not answer" in body
        assert monitor.get("/livez")[0] == 200
    finally:
        world.server.process.send_signal(signal.SIGCONT)
    monitor.wait("/readyz", 200, 15)


def test_readiness_notices_a_dead_network(world):
    """Packets vanish: nothing is refused, nothing is closed."""
    with Proxy(world.server.port) as proxy:
        _, monitor = watched(world, port=proxy.port)
        monitor.wait("/readyz", 200)

        proxy.swallow()

        monitor.wait("/readyz", 503, NOTICED)
        assert monitor.number("bus_connected", backend="local") == 1
        proxy.shut()
        proxy.open()
        monitor.wait("/readyz", 200, 20)


def test_a_bus_that_refuses_the_subscription_is_not_reached(world):
    """Connected and answering, and deaf all the same."""
    client = world.server.client()
    client.execute_command("ACL", "SETUSER", "deaf", "on", ">pw", "+@all", "~*", "resetchannels")
    backend = {"host": "127.0.0.1", "port": world.server.port, "username": "deaf",
               "password": "pw"}  # fmt: skip

    _, monitor = watched(world, backend=backend, ready=False)

    body = until(lambda: wrong(monitor, "has not subscribed us to"), 10, "a word about it")
    assert CONTROL_CHANNEL in body
    assert monitor.number("bus_connected", backend="redis") == 1
    client.close()


def test_a_stream_that_may_not_be_read_is_not_reached(world):
    """The server answers whatever else is asked, and no request ever comes."""
    client = world.server.client()
    client.execute_command("ACL", "SETUSER", "blind", "on", ">pw", "+@all", "~*", "&*",
                           "-xreadgroup")  # fmt: skip
    daemon, monitor = watched(world, tasks={"hello": durable("/bin/echo")}, start=False)
    write_file(daemon.config / "backends" / "redis_stream.yml",
               {"port": world.server.port, "username": "blind", "password": "pw"})  # fmt: skip
    daemon.start()

    body = until(lambda: wrong(monitor, "xreadgroup"), 15, "a word about it")
    assert body.startswith("backend redis_stream is not reached: ")
    assert "reading ngcp-task-agent-stream" in body
    assert monitor.number("bus_reached", backend="redis") == 1

    client.execute_command("ACL", "SETUSER", "blind", "+xreadgroup")
    monitor.wait("/readyz", 200, 15)
    client.close()


def wrong(monitor, text):
    status, body = monitor.get("/readyz")
    return body if status == 503 and text in body else None


def test_durable_requests_are_counted(world):
    """Retries and dead letters, and a bus of streams that hangs."""
    daemon, monitor = watched(world, tasks={}, start=False)
    write_file(daemon.config / "backends" / "redis_stream.yml", {"port": world.server.port})
    daemon.write_task("dies", durable("/bin/false", retry={
        "attempts": 2, "backoff": {"base": 0.05, "max": 0.1, "jitter": 0}, "on": ["error"],
    }))  # fmt: skip
    daemon.start()
    monitor.wait("/readyz", 200, 20)
    client = world.server.client()

    client.xadd("ngcp-task-agent-stream", {"request": (
        b'{"uuid": "u1", "task": "dies", "src": "web01a", "dst": "sp1",'
        b' "options": {"feedback_channel": "fb"}}'
    )})  # fmt: skip

    monitor.wait_number(1, "dead_letters_total", 15, backend="redis_stream")
    assert monitor.number("retries_total", task="dies") == 1
    assert monitor.number("requests_total", task="dies", outcome="error") == 1
    assert monitor.number("leases_held", backend="redis_stream") == 0
    world.server.process.send_signal(signal.SIGSTOP)
    try:
        body = monitor.wait("/readyz", 503, NOTICED)
    finally:
        world.server.process.send_signal(signal.SIGCONT)
    assert "backend redis_stream does not answer" in body
    monitor.wait("/readyz", 200, 20)
    client.close()


def test_a_socket_is_the_groups_and_goes_with_the_daemon(world):
    """A stale one is replaced; one in use is not; at the stop it is gone."""
    monitor = Monitor(str(world.place / "metrics.sock"))
    daemon, _ = watched(world, monitor, agent={
        "metrics": {"address": monitor.address, "mode": "0660"}
    })  # fmt: skip
    monitor.wait("/readyz", 200)
    assert stat.S_IMODE(os.stat(monitor.address).st_mode) == 0o660

    daemon.signal(signal.SIGKILL)
    daemon.process.wait(10)
    assert os.path.exists(monitor.address)
    daemon.start()
    monitor.wait("/readyz", 200, 20)

    daemon.stop()
    assert not os.path.exists(monitor.address)


def test_it_is_turned_on_moved_and_turned_off_by_a_reload(world):
    """agent.yml is read again like every other file; the counts go on."""
    daemon, monitor = watched(world)
    listener = world.listen()
    listener.ask("hello", "sp1")
    monitor.wait_number(1, "requests_total", task="hello", outcome="done")

    other = Monitor()
    path = daemon.config / "agent.yml"
    path.write_text(path.read_text().replace(monitor.address, other.address))
    other.wait("/readyz", 200)
    assert monitor.get("/livez")[0] == 0
    listener.ask("hello", "sp1")
    other.wait_number(2, "requests_total", task="hello", outcome="done")

    text = path.read_text()
    path.write_text(text[: text.index("metrics:")] + "\n" + text.partition("metrics:")[2]
                    .partition("\n")[2].partition("\n")[2])  # fmt: skip
    until(lambda: other.get("/livez")[0] == 0, 10, "the end of it")
    assert daemon.alive


def test_a_place_that_is_taken_is_told_and_the_agent_works(world):
    """Monitoring is not worth a deaf node."""
    _, monitor = watched(world)

    second, _ = watched(world, monitor)

    assert f"metrics: {monitor.address} cannot be listened on" in second.log
    assert second.alive
