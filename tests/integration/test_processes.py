"""Programs and their trees: nobody is left, everybody is reaped."""

import asyncio
import random
import resource
import signal
import time

import pytest

from ngcp_task_agent import processes
from ngcp_task_agent.errors import BrokerError
from ngcp_task_agent.processes import all_ended

from .alone import descendants, in_own_process, names, open_files, zombies
from .jobs import Kept, command_broker, job
from .loops import both_loops
from .trees import HIDER, TREES, end_busy, keep_busy, read_all, shorten, start, start_tree
from .waiting import until

pytestmark = pytest.mark.concurrency

ROUNDS = 200  # of starts that are cancelled
AT_ONCE = 8  # such rounds side by side
SHORT_PROGRAMS = 500
SIDE_BY_SIDE = 16


@pytest.mark.parametrize("name", TREES)
@in_own_process
async def test_end_leaves_nobody(name):
    """Neither ignoring SIGTERM nor leaving the session saves a process."""
    shorten()
    before = open_files()
    program = await start_tree(name)

    await program.end()

    await until(lambda: not descendants(), 1, "everybody gone and reaped")
    assert open_files() == before
    assert program.returncode < 0


@both_loops
@in_own_process
async def test_a_tree_that_heeds_sigterm_is_not_killed(loop):
    """SIGKILL is for those only that are still there after `KILL_AFTER` seconds."""
    program = start("trap 'sleep 0.3; exit 7' TERM; echo ready; while :; do sleep 0.01; done")
    assert await program.read() == b"ready\n"

    await program.end()

    assert program.returncode == 7


@in_own_process
async def test_a_stopped_child_gets_to_hear_sigterm():
    """It would only hear SIGKILL otherwise, and could not put its things in order."""
    shorten(5.0)
    program = await start_tree("stopped child")
    began = time.monotonic()

    await program.end()

    assert time.monotonic() - began < 2.5
    assert descendants() == []


@in_own_process
async def test_sigkill_comes_after_the_time_it_is_said_to():
    """A tree that ignores SIGTERM has `KILL_AFTER` seconds, no less."""
    shorten(1.0)
    program = await start_tree("ignores TERM")
    began = time.monotonic()

    await program.end()

    assert 1.0 <= time.monotonic() - began < 2.0
    assert program.returncode == -signal.SIGKILL


@both_loops
@in_own_process
async def test_end_goes_on_when_its_caller_is_cancelled(loop):
    """A second cancellation must not leave the tree alive."""
    shorten()
    program = await start_tree("everything")
    ending = asyncio.create_task(program.end())
    await asyncio.sleep(0)  # so that it has begun

    ending.cancel()

    await until(ending.done)
    assert ending.cancelled()
    await all_ended()
    assert descendants() == []


@in_own_process
async def test_one_program_s_end_leaves_the_others_alone():
    """Two programs side by side, one is ended: the other one's tree is whole."""
    shorten()
    stays = start("setsid sleep 60 & sleep 60; :")
    await until(lambda: len(descendants()) == 3)
    goes = start("setsid sleep 60 & sleep 60; :")
    await until(lambda: len(descendants()) == 6)

    await goes.end()

    assert stays.returncode is None
    assert len(descendants()) == 3
    await stays.end()
    assert descendants() == []


@pytest.mark.parametrize(
    "child",
    [
        "env -i sleep 60 </dev/null >/dev/null 2>&1",
        "setsid sleep 60 </dev/null >/dev/null 2>&1",
        "env -i setsid sleep 60 </dev/null 2>/dev/null",
    ],
    ids=["session", "mark", "output"],
)
@in_own_process
async def test_one_trace_is_enough_to_tell_whose_a_process_is(child):
    """Its parent has gone, and another program runs that it might have come from."""
    shorten()
    other = start("exec sleep 60")
    program = start(f"( (exec {child} &) ); exec sleep 60")
    await until(lambda: names() == ["sleep"] * 3)

    await program.end()

    assert len(descendants()) == 1
    assert other.returncode is None
    await other.end()


@in_own_process
async def test_one_that_hides_is_not_ended_with_a_program_it_need_not_come_from():
    """In doubt it lives as long as anybody who may have started it."""
    shorten()
    other = start("exec sleep 60")
    program = start(HIDER)
    await until(lambda: names() == ["sleep"] * 3)

    await other.end()

    assert len(descendants()) == 2
    await program.end()
    assert descendants() == []


@in_own_process
async def test_one_that_hides_is_ended_with_the_last_it_could_have_come_from():
    """A child without a mark, a session or a pipe, while another program runs."""
    shorten()
    other = start("exec sleep 60")
    program = start(HIDER)
    await until(lambda: len(descendants()) == 3)

    await program.end()
    assert other.returncode is None
    await other.end()

    assert descendants() == []


@both_loops
@in_own_process
async def test_finish_ends_what_was_left_behind(loop):
    """The leader has ended well; its children are ended meanwhile, the answer need not wait."""
    shorten()
    before = open_files()
    program = start("setsid sleep 60 & sleep 60 & echo done")
    said = await read_all(program)
    code = await program.wait()

    program.finish()
    await all_ended()

    assert (said, code) == (b"done\n", 0)
    assert descendants() == []
    assert open_files() == before


@in_own_process
async def test_finish_without_leftovers_closes_at_once():
    """The ordinary case costs no look at the process table."""
    before = open_files()
    program = start("echo done; exit 3")
    await read_all(program)
    code = await program.wait()

    program.finish()

    assert code == 3
    assert open_files() == before
    assert descendants() == []


@in_own_process
async def test_finish_of_a_program_that_runs_ends_it():
    """For instance after too much output."""
    program = await start_tree("own sessions")

    program.finish()
    await all_ended()

    assert descendants() == []


@both_loops
@pytest.mark.parametrize("child", ["sleep 60", "setsid sleep 60", "yes"])
@in_own_process
async def test_a_child_that_holds_stdout_does_not_hold_up_the_end(child, loop):
    """The program has ended: what its children do with the pipe counts for a moment only."""
    program = start(f"echo first; {child} & exit 4")
    began = time.monotonic()

    said = await read_all(program)
    code = await program.wait()
    took = time.monotonic() - began
    program.finish()
    await all_ended()

    assert said.startswith(b"first\n")
    assert code == 4
    assert took < 2.0
    await until(lambda: not descendants())


@in_own_process
async def test_what_a_child_writes_shortly_after_the_end_is_read():
    """A pipeline's last words may come after its leader has gone."""
    program = start("(sleep 0.1; echo late) & exit 0")

    said = await read_all(program)
    program.finish()
    await all_ended()

    assert said == b"late\n"


@both_loops
@in_own_process
async def test_adopted_orphans_are_reaped_while_the_job_still_runs(loop):
    """A job of hours whose helpers come and go leaves no zombies meanwhile."""
    program = start(
        "for i in $(seq 20); do ( (setsid sleep 0.3 &) ); done; echo made; exec sleep 60"
    )
    assert await program.read() == b"made\n"
    await until(lambda: len(descendants()) == 21, what="twenty orphans adopted")

    await until(lambda: len(descendants()) == 1, what="all of them reaped")

    assert program.returncode is None
    await program.end()


@in_own_process
async def test_cancelling_at_any_moment_of_the_start_leaves_nobody():
    """The naive way left somebody in most of the rounds, under load only."""
    processes.KILL_AFTER = 1.0
    broker = command_broker(
        run="/bin/sh", args=["-c", "setsid sleep 61 & sleep 61 & (sleep 61 &); wait"]
    )
    await cancelled_soon(broker, 0.05)  # what is made once, is made here
    busy = await keep_busy(2)
    before = open_files()
    chance = random.Random(7)

    for _ in range(ROUNDS // AT_ONCE):
        async with asyncio.TaskGroup() as group:
            for _ in range(AT_ONCE):
                group.create_task(cancelled_soon(broker, chance.uniform(0, 0.03)))
    await all_ended()

    ours = {process.pid for process in busy}
    left = [process for process in descendants() if process.pid not in ours]
    dead = zombies()
    alive = [process for process in left if process not in dead]
    after = open_files()
    assert not alive, alive
    await until(lambda: len(descendants()) == len(busy), what="the last zombies reaped")
    await end_busy(busy)
    assert len(after) == len(before), set(after.items()) - set(before.items())


async def cancelled_soon(broker, seconds):
    """Run a job and cancel it *seconds* after its start."""
    running = asyncio.create_task(broker.run(job(), Kept()))
    await asyncio.sleep(seconds)
    running.cancel()
    await asyncio.wait((running,))
    assert running.cancelled()


@both_loops
@in_own_process
async def test_many_short_programs_leave_nothing(loop):
    """Every exit code is the program's own; no zombie, no descriptor is left."""
    broker = command_broker(run="/bin/sh", args=["-c", "exit $(($0 % 3))"])
    await outcome(broker, 0)  # what is made once, is made here
    before = open_files()
    places = asyncio.Semaphore(SIDE_BY_SIDE)

    async def one(number):
        async with places:
            return await outcome(broker, number)

    outcomes = await asyncio.gather(*(one(number) for number in range(SHORT_PROGRAMS)))

    expected = ["", "exit code 1", "exit code 2"]
    assert outcomes == [expected[number % 3] for number in range(SHORT_PROGRAMS)]
    await until(lambda: not descendants(), what="all reaped")
    assert open_files() == before


async def outcome(broker, number):
    """The reason for the failure, empty for success."""
    try:
        await broker.run(job(arguments={"extra_args": str(number)}), Kept())
    except BrokerError as exc:
        return str(exc)
    return ""


@in_own_process
async def test_a_program_that_cannot_be_started_leaves_nothing():
    """Also no descriptors, however often it is tried."""
    before = open_files()

    for _ in range(50):
        with pytest.raises(OSError, match="No such file"):
            processes.Program(["/nonexistent"], {})
        with pytest.raises(ValueError, match="null"):
            processes.Program(["/bin/true", "a\0b"], {})

    assert open_files() == before
    assert zombies() == []


@in_own_process
async def test_too_few_descriptors_for_a_start_leave_nothing():
    """Whichever of the descriptors it is that cannot be had."""
    await read_all(start("exit 0"))
    await until(lambda: not descendants())
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    before = open_files()
    failures = 0

    for number in range(max(before) + 1, max(before) + 20):
        resource.setrlimit(resource.RLIMIT_NOFILE, (number, hard))
        try:
            program = start("sleep 60 & sleep 60; :")
        except OSError:
            program = None
            failures += 1
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        if program is not None:
            await program.end()
        await until(lambda: not descendants())
        assert open_files() == before

    assert 3 < failures < 19
