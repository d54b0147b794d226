"""Our programs beside processes that a plug-in has started by its own means."""

import asyncio
import subprocess
import sys

import pytest

from ngcp_task_agent import processes, reaper
from ngcp_task_agent.processes import all_ended

from .alone import ROOT, descendants, in_own_process, names, zombies
from .jobs import Kept, job, python_broker
from .loops import both_loops
from .trees import read_all, shorten, start
from .waiting import until

pytestmark = pytest.mark.concurrency

FIVE_ORPHANS = "for i in $(seq 5); do ( (setsid sleep 0.3 &) ); done; echo made; exec sleep 60"


async def come_and_go():
    """Programs of ours which leave a child behind, and one whose end takes some time."""
    stubborn = start("trap '' TERM; echo ready; exec sleep 60")
    await stubborn.read()
    stubborn.finish()
    for number in range(10):
        program = start(f"setsid sleep 0.0{number} & exit 3")
        await read_all(program)
        await program.wait()
        program.finish()
    await all_ended()


@both_loops
@pytest.mark.parametrize("own_session", [False, True])
@in_own_process
async def test_a_plug_in_s_subprocess_is_neither_ended_nor_reaped(own_session, loop):
    """It was there before our programs and cannot have come from them: it gives 7,
    not 255 and not an exception."""
    shorten()
    script = "sleep 0.$0; exit 7"
    plugins = [
        await asyncio.create_subprocess_exec(
            "sh", "-c", script, str(number), start_new_session=own_session
        )
        for number in range(1, 8)
    ]
    await asyncio.sleep(0.03)  # two different ticks of the clock in the process table

    await come_and_go()

    async with asyncio.timeout(5):
        assert await asyncio.gather(*(plugin.wait() for plugin in plugins)) == [7] * 7


@in_own_process
async def test_a_plug_in_s_popen_keeps_its_exit_status():
    """Also one that nobody waits for while it ends."""
    shorten()
    plugin = subprocess.Popen(["sh", "-c", "exit 7"])  # noqa: ASYNC220 (as a plug-in may do)
    await until(lambda: plugin.pid in {zombie.pid for zombie in zombies()})

    await come_and_go()

    assert plugin.wait() == 7


@both_loops
@in_own_process
async def test_orphans_are_reaped_after_a_plug_in_s_subprocess(loop):
    """uvloop takes SIGCHLD for its own subprocesses, and gives it back to nobody."""
    plugin = await asyncio.create_subprocess_exec("sh", "-c", "exit 7")
    assert await plugin.wait() == 7
    program = start(FIVE_ORPHANS)
    assert await program.read() == b"made\n"
    await until(lambda: len(descendants()) == 6, what="five orphans adopted")

    await until(lambda: len(descendants()) == 1, 2, "all of them reaped")

    await program.end()


@both_loops
@in_own_process
async def test_orphans_are_reaped_while_a_plug_in_s_subprocess_runs(loop):
    """The same, with the plug-in's subprocess still there."""
    plugin = await asyncio.create_subprocess_exec("sleep", "60")
    program = start(FIVE_ORPHANS)
    assert await program.read() == b"made\n"
    await until(lambda: len(descendants()) == 7, what="five orphans adopted")

    await until(lambda: len(descendants()) == 2, 2, "all of them reaped")

    await program.end()
    plugin.kill()
    await plugin.wait()


@both_loops
@in_own_process
async def test_an_orphan_of_a_plug_in_s_subprocess_is_reaped(loop):
    """Adopted like all others: in a daemon that runs for months it must not pile up."""
    reaper.STRANGERS_AFTER = 0.5
    plugin = await asyncio.create_subprocess_exec("sh", "-c", "sleep 0.2 & exit 7")
    assert await plugin.wait() == 7
    assert len(descendants()) == 1
    processes.sweep_soon()  # as the broker does that let the plug-in run

    await until(lambda: not descendants(), 5, "the orphan reaped")


@in_own_process
async def test_a_worker_s_own_children_end_with_it(tmp_path):
    """A plain function that starts a program, and is ended at its time limit."""
    shorten()
    source = 'import subprocess\n\ndef wait():\n    subprocess.run(["setsid", "sleep", "60"])\n'
    tmp_path.joinpath("functions.py").write_text(source)
    broker = python_broker(callable="functions:wait", path=str(tmp_path))
    running = asyncio.create_task(broker.run(job(), Kept()))
    await until(lambda: "sleep" in names(), what="the function's program")

    running.cancel()
    await asyncio.wait((running,))

    assert running.cancelled()
    await until(lambda: not descendants())


def test_a_child_that_ends_after_the_loop_does_no_harm():
    """The daemon is about to exit; the last signal must not turn status 0 into a traceback."""
    code = (
        "import asyncio, subprocess, time\n"
        "from ngcp_task_agent.processes import adopt_orphans\n"
        "async def main():\n"
        "    adopt_orphans(asyncio.get_running_loop())\n"
        "asyncio.run(main())\n"
        "subprocess.Popen(['true']).wait()\n"
        "time.sleep(0.1)\n"
    )

    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, timeout=20)

    assert (done.returncode, done.stderr.decode()) == (0, "")
