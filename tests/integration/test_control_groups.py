"""Process trees where control groups are delegated to the agent."""

import asyncio
import os
from pathlib import Path

import psutil
import pytest

from ngcp_task_agent.processes import adopt_orphans

from .alone import descendants, in_own_process, names
from .trees import HIDER, shorten, start
from .waiting import until

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs to run as root"),
]


@pytest.fixture
def control_group():
    """A control group that is delegated as the service manager does it."""
    mounts = [Path(part.mountpoint) for part in psutil.disk_partitions(all=True)
              if part.fstype == "cgroup2"]  # fmt: skip
    if not mounts:
        pytest.skip("no control groups of version 2")
    path = mounts[0] / f"ngcp-task-agent-test-{os.getpid()}"
    try:
        path.mkdir()
    except OSError as exc:
        pytest.skip(f"no control groups to be made here: {exc}")
    os.setxattr(path, "trusted.delegate", b"1")
    yield path
    path.rmdir()


def move_into(control_group):
    """Be in there, as if the service manager had started this process in it."""
    control_group.joinpath("cgroup.procs").write_text(str(os.getpid()))
    adopt_orphans(asyncio.get_running_loop())
    shorten()


def groups_in(control_group):
    return [path.name for path in control_group.iterdir() if path.is_dir()]


@in_own_process
async def test_one_that_hides_is_ended_while_another_program_runs(control_group):
    """Nothing has to be guessed, and nothing waits for another's end."""
    move_into(control_group)
    other = start("exec sleep 60")
    program = start(f"sleep 0.2; {HIDER}")
    await until(lambda: names().count("sleep") == 3)

    await program.end()

    assert len(descendants()) == 1
    assert len(groups_in(control_group)) == 1
    await other.end()
    assert descendants() == []
    assert groups_in(control_group) == []


@in_own_process
async def test_what_is_left_behind_is_found_by_its_group(control_group):
    """After a program that ended well; and no group is left either."""
    move_into(control_group)
    other = start("exec sleep 60")
    program = start(f"sleep 0.2; {HIDER.replace('exec sleep 60', 'exit 0')}")
    await program.wait()
    await until(lambda: names().count("sleep") == 2)

    program.finish()
    await until(lambda: len(descendants()) == 1)

    await other.end()
    assert groups_in(control_group) == []
