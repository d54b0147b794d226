"""What a program has used, from what the kernel's files say."""

import resource
import signal

import pytest

from ngcp_task_agent.account import draw_up
from ngcp_task_agent.cgroups import Group
from ngcp_task_agent.confinement import Confinement

MIB = 1024 * 1024
USAGE = resource.struct_rusage((1.5, 0.5, *[0] * 14))
BOUNDS = Confinement(memory=64 * MIB, file_size=MIB)


@pytest.fixture
def group(tmp_path):
    """A directory that looks like a control group; files are put into it."""

    def made(**files):
        found = Group(str(tmp_path), "1")
        for name, text in files.items():
            (tmp_path / "job-1" / name.replace("_", ".", 1)).write_text(text)
        return found

    return made


def test_without_a_group_it_is_what_was_seen():
    """The kernel's peak is no more than our own: it may be our own."""
    assert draw_up(USAGE, 0, 5 * MIB, None, BOUNDS) == (2.0, 5 * MIB, "")
    assert draw_up(USAGE, 0, 0, None, BOUNDS) == (2.0, None, "")


def test_a_peak_above_our_own_is_the_program_s():
    """Where nobody has looked in time."""
    usage = resource.struct_rusage((0.0, 0.0, 1 << 40, *[0] * 13))

    assert draw_up(usage, 0, 0, None, BOUNDS).peak_memory == 1 << 50


def test_a_group_knows_better(group):
    """It counts all of the job, also who has not been waited for."""
    found = group(cpu_stat="usage_usec 2500000\nuser_usec 1\n", memory_peak="7340032\n")

    assert draw_up(USAGE, 0, MIB, found, BOUNDS) == (2.5, 7 * MIB, "")


def test_what_a_kernel_does_not_tell_is_taken_from_elsewhere(group):
    """memory.peak came with Linux 5.19."""
    assert draw_up(USAGE, 0, MIB, group(), BOUNDS) == (2.0, MIB, "")


@pytest.mark.parametrize(
    ("events", "code", "reason"),
    [
        ("oom 1\noom_kill 2\n", -9, "out of memory: more than 64 MiB (limits.memory)"),
        ("oom 0\noom_kill 1\n", -9, "out of memory"),
        ("oom 0\noom_kill 0\n", -9, ""),
        ("oom 1\noom_kill 1\n", 0, ""),
        ("", -signal.SIGXFSZ, "a file of more than 1 MiB (limits.file_size)"),
    ],
)
def test_a_limit_is_told_from_a_crash(group, events, code, reason):
    """The machine's lack of memory is not the task's; and who ended well hit nothing."""
    assert draw_up(USAGE, code, 0, group(memory_events=events), BOUNDS).limit_hit == reason


def test_a_signal_without_a_limit_is_a_crash():
    """Somebody else may send any of them."""
    assert draw_up(USAGE, -signal.SIGXFSZ, 0, None, Confinement()).limit_hit == ""
