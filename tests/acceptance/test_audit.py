"""The audit log of real daemons: who did what, and tasks that do not run unseen."""

import json
import os
import signal
import subprocess

import pytest

from .harness import COMMANDS, World, command
from .processes import until

pytestmark = pytest.mark.redis


@pytest.fixture
def world():
    with World() as world:
        yield world


def lines_of(daemon):
    path = daemon.place / "state" / "audit.jsonl"
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def verify(daemon):
    """What the installed command says of the configured log."""
    return subprocess.run(
        [COMMANDS / "ngcp-task-agent", "audit", "verify", "--config-dir", daemon.config],
        capture_output=True, text=True, timeout=30,
    )  # fmt: skip


def test_each_decision_is_a_line(world):
    """Allowed, started, ended, rejected, passed over; with who asked, and for what."""
    tasks = {
        "hello": command("/bin/echo", broker_options={"mask": ["data.password"]}),
        "one": command("/bin/sleep", "1", max_running=1, max_queued=0),
    }
    daemon = world.daemon(tasks=tasks, agent={"audit": {"enabled": True}})
    listener = world.listen()
    ref = listener.make("hello", "sp1", data={"password": "s3cret", "host": "web"})
    listener.send_all([ref])
    listener.hear_until(lambda: listener.statuses(ref["uuid"]) == ["accepted", "done"], 10)
    refused = listener.send("nothing", "sp1")
    listener.talk(refused)
    busy = [listener.send("one", "*") for _ in range(2)]
    listener.talk(busy[0])
    subprocess.run([COMMANDS / "ngcp-task", "send", "hello", "--socket", daemon.socket],
                   check=True, timeout=30, capture_output=True)  # fmt: skip

    lines = lines_of(daemon)
    mine = [line for line in lines if line["uuid"] == ref["uuid"]]
    assert [line["event"] for line in mine] == ["allowed", "started", "ended"]
    assert mine[0] | {"task": "hello", "src": "web01a", "dst": "sp1", "backend": "redis"} == mine[0]
    assert mine[0]["arguments"] == {"password": "***", "host": "web"}
    assert (mine[2]["outcome"], mine[2]["reason"]) == ("done", "")
    (no,) = [line for line in lines if line["uuid"] == refused]
    assert (no["event"], no["reason"]) == ("rejected", "unknown task 'nothing'")
    (over,) = [line for line in lines if line["uuid"] == busy[1]]
    assert over["event"] == "passed over"
    assert over["reason"]
    (local,) = [line for line in lines if line["event"] == "allowed" and line.get("caller")]
    assert (local["backend"], local["caller"].split(",")[0]) == ("local", f"uid {os.getuid()}")
    assert "s3cret" not in (daemon.place / "state" / "audit.jsonl").read_text()
    assert {line["node"] for line in lines} == {"sp1"}
    done = verify(daemon)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"{len(lines)} lines are whole: 1 to {len(lines)}, hash ")


def test_the_chain_goes_on_after_a_kill(world):
    """And says what became of what had begun."""
    daemon = world.daemon(
        tasks={"long": command("/bin/sleep", "60")}, agent={"audit": {"max_size": "64KiB"}}
    )
    listener = world.listen()
    ref = listener.send("long", "sp1")
    until(lambda: [line["event"] for line in lines_of(daemon)][-1:] == ["started"], 10, "start")
    daemon.signal(signal.SIGKILL)
    daemon.process.wait(10)
    daemon.start()
    world.wait_ready(daemon)
    listener.hear_until(lambda: listener.statuses(ref) == ["accepted", "error"], 10)

    last = lines_of(daemon)[-1]
    assert (last["event"], last["uuid"], last["outcome"]) == ("ended", ref, "error")
    assert "outcome unknown" in last["reason"]
    assert verify(daemon).returncode == 0
    path = daemon.place / "state" / "audit.jsonl"
    path.write_bytes(path.read_bytes().replace(b'"outcome":"error"', b'"outcome":"done"', 1))
    broken = verify(daemon)
    assert broken.returncode == 1
    assert f"{path}:3: found hash " in broken.stderr


def test_a_task_that_must_be_audited_does_not_run_unseen(world):
    """Others do; the status and `ping` tell, and it goes on by itself."""
    effects = world.file("effects", "")
    run = world.script("counts", f'echo "$NGCP_TASK_UUID" >>{effects}')
    place = world.place / "audit"
    place.write_text("in the way")
    daemon = world.daemon(
        tasks={"strict": command(run, audit="required"), "easy": command(run)},
        agent={"audit": {"path": str(place / "log.jsonl")}},
    )
    listener = world.listen()

    strict = listener.talk(listener.send("strict", "sp1"))[-1]
    easy = listener.talk(listener.send("easy", "sp1"))[-1]
    ping = subprocess.run([COMMANDS / "ngcp-task", "ping", "--socket", daemon.socket],
                          capture_output=True, text=True, timeout=30)  # fmt: skip
    assert (strict["status"], easy["status"]) == ("error", "done")
    assert strict["reason"].startswith("not run, for it cannot be audited: ")
    assert effects.read_text().splitlines() == [easy["ref"]]
    assert "audit: not writable: " in ping.stdout

    place.unlink()
    assert listener.talk(listener.send("strict", "sp1"))[-1]["status"] == "done"
    lines = [json.loads(line) for line in (place / "log.jsonl").read_bytes().splitlines()]
    assert [line["event"] for line in lines] == ["allowed", "started", "ended"]
    assert lines[0]["missed"] >= 4


def test_a_task_that_must_be_audited_where_there_is_no_log(world):
    """It says so, instead of running as if there were one."""
    world.daemon(tasks={"strict": command("/bin/true", audit="required")})
    listener = world.listen()
    end = listener.talk(listener.send("strict", "sp1"))[-1]
    assert (end["status"], end["reason"]) == ("error", "not run, for there is no audit log")
