"""The daemon's life: readiness, watchdog, stop, and configuration that changes under it."""

import os
import signal
import socket

import pytest

from .harness import command, write_file
from .processes import until

pytestmark = pytest.mark.redis

LIVE = 2.0  # seconds until a changed file counts
RESULTS = {"hello": command("/bin/echo", "hello"), "other": command("/bin/echo", "other")}


class Notified:
    """The socket of a service manager: what the daemon tells it by sd_notify."""

    def __init__(self, path):
        self.path = path
        self.lines = []
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(str(path))
        self.socket.setblocking(False)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.socket.close()

    def count(self, line):
        try:
            while True:
                self.lines += self.socket.recv(65536).decode().splitlines()
        except BlockingIOError:
            return self.lines.count(line)


def test_sd_notify_tells_ready_watchdog_and_stopping(world):
    """READY when it answers, WATCHDOG at least every interval, STOPPING at SIGTERM."""
    with Notified(world.place / "notify") as manager:
        env = {"NOTIFY_SOCKET": str(manager.path), "WATCHDOG_USEC": "1000000"}
        daemon = world.daemon(tasks=RESULTS, env=env, ready=False)
        listener = world.listen()

        until(lambda: manager.count("READY=1"), 10, "READY=1")
        assert listener.ask("hello", "sp1", seconds=2)[-1]["data"] == "hello\n"
        until(lambda: manager.count("WATCHDOG=1") >= 4, 5, "four WATCHDOG=1")
        assert manager.count("STOPPING=1") == 0

        assert daemon.stop() == 0
        assert manager.count("STOPPING=1") == 1
        assert any(line.startswith("STATUS=") for line in manager.lines)


def test_no_watchdog_where_none_was_asked_for(world):
    """Without WATCHDOG_USEC there is nobody to feed."""
    with Notified(world.place / "notify") as manager:
        daemon = world.daemon(tasks=RESULTS, env={"NOTIFY_SOCKET": str(manager.path)})

        until(lambda: manager.count("READY=1"), 10, "READY=1")
        assert daemon.stop() == 0
        assert manager.count("WATCHDOG=1") == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["TERM", "INT"])
def test_an_idle_daemon_stops_at_once(world, number):
    """Exit 0, long before the grace time is over, and its socket file is gone."""
    daemon = world.daemon(tasks=RESULTS, agent={"grace": 60})

    daemon.signal(number)

    assert daemon.process.wait(5) == 0


def test_a_killed_daemon_starts_again(world):
    """What a crash left in the state directory and of the local socket is no obstacle."""
    daemon = world.daemon(tasks=RESULTS)

    daemon.process.kill()
    daemon.process.wait(5)
    daemon.start()

    world.wait_ready(daemon)


def result_of(listener, task, dst="sp1"):
    """Return stdout of *task*, or None where this node does not have it."""
    last = listener.ask(task, dst)[-1]
    return None if last["status"] == "rejected" else last["data"]


@pytest.fixture
def node(world):
    daemon = world.daemon(tasks=RESULTS)
    return daemon, world.listen()


def test_a_file_dropped_in_is_live_and_removed_is_gone(node):
    """Within 2 s, both ways, and twice."""
    daemon, listener = node

    for turn in ("one", "two"):
        assert result_of(listener, "fresh") is None
        path = daemon.write_task("fresh", command("/bin/echo", turn))
        until(lambda: result_of(listener, "fresh") is not None, LIVE, "the new task")
        assert result_of(listener, "fresh") == f"{turn}\n"
        path.unlink()
        until(lambda: result_of(listener, "fresh") is None, LIVE, "the end of the task")

    assert result_of(listener, "hello") == "hello\n"


def test_a_file_written_in_place_is_live(node):
    """An editor that opens and writes, with a pause in between, makes no half tasks."""
    daemon, listener = node
    whole = daemon.write_task("scratch", command("/bin/echo", "slowly"))
    text = whole.read_text()
    until(lambda: result_of(listener, "scratch"), LIVE, "the new task")
    whole.unlink()
    until(lambda: result_of(listener, "scratch") is None, LIVE, "the end of the task")

    with whole.open("w") as file:
        os.fchmod(file.fileno(), 0o644)
        file.write(text[: len(text) // 2])
        file.flush()
        result_of(listener, "hello")
        file.write(text[len(text) // 2 :])

    until(lambda: result_of(listener, "scratch") == "slowly\n", LIVE, "the whole task")


def test_a_changed_file_counts_for_the_next_request(node):
    """The new version is used within 2 s."""
    daemon, listener = node

    daemon.write_task("hello", command("/bin/echo", "changed"))

    until(lambda: result_of(listener, "hello") == "changed\n", LIVE, "the changed task")


@pytest.mark.parametrize(
    "broken",
    [
        "name: hello\nbackend: [redis\n",
        "",
        "- hello\n",
        "name: hello\nbackend: redis\n",
        "name: hello\nbackend: redis\nbackend_options: {control_channel: ngcp-task-agent-redis}\n"
        "broker: comand\nbroker_options: {run: /bin/echo}\n",
        "\0\0\0",
    ],
    ids=["YAML", "empty", "list", "no broker", "unknown broker", "nulls"],
)
def test_a_broken_file_keeps_its_last_good_version(node, broken):
    """It is named in the log, goes on as it was, and harms no other."""
    daemon, listener = node

    daemon.write_task("hello", broken)

    until(lambda: "hello.yml" in daemon.log, LIVE + 1, "the file's name in the log")
    assert result_of(listener, "hello") == "hello\n"
    assert result_of(listener, "other") == "other\n"
    daemon.write_task("hello", command("/bin/echo", "mended"))
    until(lambda: result_of(listener, "hello") == "mended\n", LIVE, "the mended task")


def test_sighup_reads_the_files_again(node):
    """It is the same step as a change on disk, and it is safe to send at any time."""
    daemon, listener = node
    daemon.write_task("fresh", command("/bin/echo", "fresh"))

    daemon.signal(signal.SIGHUP)

    until(lambda: result_of(listener, "fresh") == "fresh\n", LIVE, "the new task")
    assert result_of(listener, "hello") == "hello\n"
    assert daemon.alive


def test_a_running_job_keeps_the_task_it_started_with(world):
    """The file changes under it, even goes: the job ends as it began, and is answered."""
    gate = world.place / "gate"
    waits = world.script("waits", f'while ! test -e "{gate}"; do sleep 0.2; done', 'echo "$1"')
    daemon = world.daemon(tasks={"waits": command(waits, "old", max_running=200), **RESULTS})
    listener = world.listen()
    running = [listener.send("waits", "sp1")]
    listener.hear_until(lambda: listener.statuses(running[0]) == ["accepted"])

    daemon.write_task("waits", command("/bin/echo", "new"))
    until(lambda: late_result(listener, running) == "new\n", LIVE + 1, "the changed task")
    daemon.task_path("waits").unlink()
    until(lambda: result_of(listener, "waits") is None, LIVE, "the end of the task")
    gate.touch()

    ends = [listener.talk(ref)[-1] for ref in running]
    assert {end["status"] for end in ends} == {"done"}
    assert ends[0]["data"] == "old\n"
    assert ends[-1]["data"] == "new\n"


def late_result(listener, running):
    """Send one more request; what comes at once is the new task, what waits is the old one."""
    ref = listener.send("waits", "sp1")
    running.append(ref)
    listener.fence()
    listener.hear(0.1)
    return next((b["data"] for b in listener.of(ref) if b["status"] == "done"), None)


def test_a_new_control_channel_is_subscribed_when_its_task_appears(world):
    """Tasks decide which channels are listened to."""
    daemon = world.daemon(tasks=RESULTS)
    task = {**command("/bin/echo", "far"), "backend_options": {"control_channel": "far"}}
    client = world.server.client()

    path = daemon.write_task("far", task)
    until(lambda: client.pubsub_numsub("far")[0][1] == 1, LIVE + 1, "the subscription")
    path.unlink()
    until(lambda: client.pubsub_numsub("far")[0][1] == 0, LIVE + 1, "its end")

    client.close()


def test_a_disabled_task_is_not_there(node):
    """``enabled: false`` is as good as no file."""
    daemon, listener = node

    daemon.write_task("hello", {**RESULTS["hello"], "enabled": False})

    until(lambda: result_of(listener, "hello") is None, LIVE, "the end of the task")


def test_a_file_that_others_can_write_is_refused(node):
    """The daemon is root: whoever writes its files is root as well."""
    daemon, listener = node
    content = {"name": "planted", **command("/bin/echo", "planted")}

    write_file(daemon.task_path("planted"), content, mode=0o666)

    until(lambda: "planted.yml" in daemon.log, LIVE + 1, "the file's name in the log")
    assert result_of(listener, "planted") is None


def test_builtin_ping_and_tasks(node):
    """Addressed and answered like any other task."""
    _, listener = node

    ping = listener.ask("agent.ping", "sp1")
    tasks = listener.ask("agent.tasks", "sp1")

    assert [body["status"] for body in ping + tasks] == ["accepted", "done"] * 2
    assert {"name", "version", "facts", "uptime"} <= set(ping[-1]["data"])
    assert ping[-1]["data"]["name"] == "sp1"
    text = str(tasks[-1]["data"])
    assert "'hello'" in text
    assert "'other'" in text


def test_a_backend_that_changes_still_answers_its_jobs(world):
    """What came by the old connection is answered by it; what comes next, by the new one."""
    gate = world.place / "gate"
    waits = world.script("waits", f'while ! test -e "{gate}"; do sleep 0.1; done', "echo old")
    daemon = world.daemon(tasks={"waits": command(waits), **RESULTS})
    listener = world.listen()
    ref = listener.send("waits", "sp1")
    listener.hear_until(lambda: listener.statuses(ref) == ["accepted"])

    backend = {"host": "127.0.0.1", "port": world.server.port, "client_name": "another-name"}
    write_file(daemon.config / "backends" / "redis.yml", backend)
    until(lambda: "another-name" in client_names(world), LIVE + 1, "the new connection")
    assert result_of(listener, "hello") == "hello\n"
    gate.touch()

    assert listener.talk(ref)[-1]["data"] == "old\n"
    until(lambda: "ngcp-task-agent" not in client_names(world), 5, "the old connections' end")


def client_names(world):
    with world.server.client() as client:
        return {entry["name"] for entry in client.client_list()}


def test_a_socket_that_changes_is_there_again(world):
    """A new mode for the local socket: the same path, taken over from oneself."""
    daemon = world.daemon(tasks=RESULTS)
    assert daemon.socket.stat().st_mode & 0o777 == 0o600

    write_file(daemon.config / "backends" / "local.yml", {"mode": "0666"})

    until(
        lambda: daemon.socket.exists() and daemon.socket.stat().st_mode & 0o777 == 0o666,
        LIVE + 1,
        "the socket with its new mode",
    )
