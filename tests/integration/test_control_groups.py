"""Process trees where control groups are delegated to the agent."""

import os

import pytest

from .alone import descendants, in_own_process, names
from .groups import groups_of_programs, move_into
from .trees import HIDER, start
from .waiting import until

pytestmark = [
    pytest.mark.concurrency,
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs to run as root"),
]


@in_own_process
async def test_one_that_hides_is_ended_while_another_program_runs(control_group):
    """Nothing has to be guessed, and nothing waits for another's end."""
    move_into(control_group)
    other = start("exec sleep 60")
    program = start(f"sleep 0.2; {HIDER}")
    await until(lambda: names().count("sleep") == 3)

    await program.end()

    assert len(descendants()) == 1
    assert len(groups_of_programs(control_group)) == 1
    await other.end()
    assert descendants() == []
    assert groups_of_programs(control_group) == []


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
    await until(lambda: not groups_of_programs(control_group), what="the groups removed")
