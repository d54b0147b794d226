"""Limits of whole jobs, where the control groups that are delegated can hold them."""

import os
import sys
import time

import pytest

from ngcp_task_agent import cgroups
from ngcp_task_agent.confinement import Confinement, read_confinement
from ngcp_task_agent.errors import BrokerError
from ngcp_task_agent.options import Options

from .alone import descendants, in_own_process
from .groups import groups_of_programs, move_into, own_group
from .jobs import Kept, command_broker, job
from .trees import start
from .waiting import until

MIB = 1024 * 1024
HOG = f"{sys.executable} -S -c 'b\"x\" * (200 << 20)'"

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs to run as root"),
]


@pytest.fixture(autouse=True)
def controllers(control_group):
    """Without these the kernel limits nothing."""
    found = control_group.joinpath("cgroup.controllers").read_text().split()
    missing = cgroups.CONTROLLERS - set(found)
    if missing:
        pytest.skip(f"the hierarchy of version 2 has no controllers {', '.join(sorted(missing))}")


async def fails(script, output, **options):
    with pytest.raises(BrokerError) as failure:
        await command_broker(run="/bin/sh", args=["-c", script], **options).run(job(), output)
    return str(failure.value)


@in_own_process
async def test_the_agent_makes_room_for_groups_with_limits(control_group):
    """A group has processes or limited groups in it, not both."""
    move_into(control_group)

    assert own_group() == f"/{control_group.name}/agent"
    enabled = control_group.joinpath("cgroup.subtree_control").read_text().split()
    assert set(enabled) == cgroups.CONTROLLERS


@in_own_process
async def test_a_restart_finds_its_place_again(control_group):
    """Also where the service manager itself has moved the agent (DelegateSubgroup)."""
    move_into(control_group)

    assert cgroups.take_over() == (str(control_group), cgroups.CONTROLLERS)


@in_own_process
async def test_nothing_is_warned_of(control_group):
    """What holds needs no word, before and after the agent has taken over."""
    move_into(control_group)
    options = Options({"limits": {"memory": "64MiB", "pids": 9, "cpu": "50%"}}, "tasks/t.yml")

    read_confinement(options)

    assert options.problems == options.notes == []


@in_own_process
async def test_out_of_memory_is_told_from_a_crash(control_group):
    """One is the limit's doing, the other the program's."""
    move_into(control_group)
    limits = {"memory": "64MiB"}
    output = Kept()

    assert await fails(f"exec {HOG}", output, limits=limits) == (
        "out of memory: more than 64 MiB (limits.memory)"
    )
    assert output.code == -9
    assert 60 * MIB <= output.peak_memory <= 64 * MIB
    assert await fails("kill -KILL $$", Kept(), limits=limits) == "killed by signal SIGKILL"
    await until(lambda: groups_of_programs(control_group) == [])


@in_own_process
async def test_memory_is_that_of_the_whole_job(control_group):
    """A child's counts as well, and its end is the end of the job."""
    move_into(control_group)
    script = f"{HOG} & wait $!; echo went on; sleep 60"
    began = time.monotonic()

    reason = await fails(script, output := Kept(), limits={"memory": "64MiB"})

    assert reason == "out of memory: more than 64 MiB (limits.memory)"
    assert output.text == b""
    assert time.monotonic() - began < 30


@in_own_process
async def test_processes_are_those_of_the_job(control_group):
    """Root's too, and no other job has fewer for it."""
    move_into(control_group)
    script = "for i in 1 2 3 4 5 6 7 8; do sleep 30 & done; wait"
    other = start("sleep 60 & sleep 60 & wait")

    reason = await fails(script, Kept(), limits={"pids": 5})

    assert "fork" in reason.lower()
    await until(lambda: len(descendants()) == 3, 10)
    await other.end()


@in_own_process
async def test_who_is_started_before_the_program_is_in_its_group_follows_it(control_group):
    """The daemon may be slow: then a program has children before it is moved in."""
    move_into(control_group)
    add = cgroups.Group.add

    def slow_add(group, pid):
        time.sleep(1.0)
        add(group, pid)

    cgroups.Group.add = slow_add
    program = start("sh -c 'sleep 60 & wait' & wait", confinement=Confinement(pids=50))
    group = control_group / groups_of_programs(control_group)[0]

    assert len(group.joinpath("cgroup.procs").read_text().split()) == 3
    await program.end()


@in_own_process
async def test_processor_time_is_a_share(control_group):
    """A job that wants all of a processor gets what it may have."""
    move_into(control_group)
    text = (
        "import time; used, end = time.process_time(), time.monotonic() + 2\n"
        "while time.monotonic() < end: pass\n"
        "print(time.process_time() - used)"
    )
    output = Kept()

    broker = command_broker(run=sys.executable, args=["-S", "-c", text], limits={"cpu": "20%"})
    await broker.run(job(), output)

    assert 0.1 < float(output.text) < 0.8
    assert output.cpu_seconds >= float(output.text)


@in_own_process
async def test_limits_are_there_before_the_program(control_group):
    """Of a group nobody is in yet."""
    move_into(control_group)
    place = "$(sed -n 's/^0:://p' /proc/self/cgroup)"
    mount = control_group.parent
    script = f"sleep 0.2; cd {mount}{place} && cat memory.max memory.oom.group pids.max cpu.max"
    output = Kept()
    limits = {"memory": "64MiB", "pids": 7, "cpu": 1.5}

    await command_broker(run="/bin/sh", args=["-c", script], limits=limits).run(job(), output)

    assert output.text.split() == [b"%d" % (64 * MIB), b"1", b"7", b"150000", b"100000"]
