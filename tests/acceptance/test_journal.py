"""What the journal is for, with real daemons that are killed and started again."""

import signal
import subprocess

import pytest

from .harness import COMMANDS, World, command
from .processes import until

pytestmark = pytest.mark.redis

UNKNOWN = "outcome unknown: the agent stopped while it ran"


@pytest.fixture
def world():
    with World() as world:
        yield world


def counting(world, *lines):
    """A program that leaves a line in a file for each time it is run; and the file."""
    effects = world.file("effects", "")
    return world.script("counts", f'echo "$NGCP_TASK_UUID" >>{effects}', *lines), effects


def kill(daemon):
    daemon.signal(signal.SIGKILL)
    daemon.process.wait(10)


def restart(world, daemon):
    daemon.start()
    world.wait_ready(daemon)


def test_a_job_cut_off_by_a_crash_is_answered_at_the_next_start(world):
    """With an error, once, and the same request is not run again."""
    run, effects = counting(world, "sleep 60")
    daemon = world.daemon(tasks={"slow": command(run)})
    listener = world.listen()
    ref = listener.send("slow", "sp1")
    until(lambda: effects.read_text(), 10, "the job's start")

    kill(daemon)
    restart(world, daemon)
    listener.hear_until(lambda: listener.statuses(ref) == ["accepted", "error"], 10)
    first = [m.body for m in listener.heard if m.body["ref"] == ref][-1]
    again = listener.make("slow", "sp1", uuid=ref)
    listener.send_all([again])
    listener.hear_until(lambda: len(listener.statuses(ref)) == 4, 10)

    assert first["reason"] == UNKNOWN
    assert [m.body for m in listener.heard if m.body["ref"] == ref][-1] == first
    assert len(effects.read_text().splitlines()) == 1


def test_an_ended_request_is_not_run_again_after_a_restart(world):
    """The recorded answer is sent again, as it was."""
    run, effects = counting(world, "echo result")
    daemon = world.daemon(tasks={"quick": command(run)})
    listener = world.listen()
    ref = listener.send("quick", "sp1")
    listener.talk(ref)
    kill(daemon)
    restart(world, daemon)

    listener.send_all([listener.make("quick", "sp1", uuid=ref)])
    listener.hear_until(
        lambda: (
            listener.statuses(ref).count("accepted") == 2 and listener.statuses(ref)[-1] == "done"
        ),
        10,
    )

    bodies = [m.body for m in listener.heard if m.body["ref"] == ref]
    ends = [body for body in bodies if body["status"] == "done"]
    assert {end["uuid"] for end in ends} == {ends[0]["uuid"]}
    assert ends[0]["data"] == "result\n"
    assert len(effects.read_text().splitlines()) == 1


def test_where_nothing_can_be_recorded_it_is_said(world):
    """A task that requires the record is refused, others run, and `ping` tells why."""
    run, effects = counting(world)
    place = world.file("no_directory", "")
    daemon = world.daemon(
        tasks={"strict": command(run, journal="required"), "easy": command(run)},
        agent={"state_dir": str(place)},
    )
    listener = world.listen()

    strict = listener.talk(listener.send("strict", "sp1"))[-1]
    easy = listener.talk(listener.send("easy", "sp1"))[-1]
    ping = subprocess.run(
        [COMMANDS / "ngcp-task", "ping", "--socket", daemon.socket],
        capture_output=True, text=True, timeout=30,
    )  # fmt: skip

    assert (strict["status"], easy["status"]) == ("error", "done")
    assert strict["reason"].startswith("not run, for it cannot be recorded: ")
    assert "Not a directory" in strict["reason"] or "File exists" in strict["reason"]
    assert effects.read_text().splitlines() == [easy["ref"]]
    assert "journal: not writable: " in ping.stdout


def test_without_a_journal_it_works_as_before(world):
    """`journal: {enabled: no}`, for who wants no record."""
    run, effects = counting(world)
    daemon = world.daemon(tasks={"easy": command(run)}, agent={"journal": {"enabled": False}})
    listener = world.listen()

    ref = listener.send("easy", "sp1")
    assert listener.talk(ref)[-1]["status"] == "done"
    assert not (daemon.place / "state" / "journal.db").exists()
    assert effects.read_text().splitlines() == [ref]
