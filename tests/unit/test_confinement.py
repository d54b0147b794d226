"""Bounds of programs, as they stand in a file: read, refused, and warned of."""

import pytest

from ngcp_task_agent import cgroups
from ngcp_task_agent.confinement import TMP_SIZE, Confinement, read_confinement
from ngcp_task_agent.options import Options

MIB = 1024 * 1024
FEW, ALL = frozenset(), cgroups.CONTROLLERS


@pytest.fixture(autouse=True)
def delegated(monkeypatch):
    """Nothing to warn of, unless a test says otherwise."""
    monkeypatch.setattr(cgroups, "available", lambda: ALL)
    monkeypatch.setattr("os.geteuid", lambda: 0)


def read(**fields):
    options = Options(fields, "tasks/t.yml")
    found = read_confinement(options)
    options.close()
    return found, [str(p) for p in options.problems], [str(n) for n in options.notes]


def test_nothing_is_limited_by_default():
    """But new privileges are never to be had unasked."""
    assert read() == (Confinement(no_new_privileges=True), [], [])


def test_every_bound_is_read():
    """Each key of the issue, in the form people write it."""
    limits = {"memory": "64MiB", "pids": 20, "cpu": "50%", "open_files": 256,
              "file_size": "1G", "nice": -5, "io_priority": "best-effort/7"}  # fmt: skip

    found, problems, notes = read(
        limits=limits, private_tmp=True, no_new_privileges=False, read_only_paths=["/etc", "/usr"]
    )

    assert problems == notes == []
    assert found == Confinement(
        64 * MIB, 20, 0.5, 256, 1024 * MIB, -5, "best-effort/7", TMP_SIZE, False, ("/etc", "/usr")
    )


@pytest.mark.parametrize(
    ("written", "processors"),
    [("50%", 0.5), (0.5, 0.5), (2, 2.0), ("200 %", 2.0), ("1.5", 1.5), ("1%", 0.01)],
)
def test_processors_are_a_share_or_a_number(written, processors):
    """As systemd's CPUQuota, or as people count processors."""
    assert read(limits={"cpu": written})[0].cpu == processors


@pytest.mark.parametrize(
    ("value", "size"), [(True, TMP_SIZE), (False, 0), ("10MiB", 10 * MIB), (4096, 4096)]
)
def test_a_private_tmp_is_yes_or_a_size(value, size):
    """Most want some; who writes a lot says how much."""
    assert read(private_tmp=value)[0].private_tmp == size


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"limits": {"memroy": 1}}, "limits.memroy: found an unknown key; expected 'memory'"),
        ({"limits": {"memory": "lots"}}, "limits.memory: found 'lots'"),
        ({"limits": {"memory": 4096}}, "limits.memory: found 4096"),
        ({"limits": {"cpu": "half"}}, "limits.cpu: found 'half'"),
        ({"limits": {"cpu": "0%"}}, "limits.cpu: found '0%'"),
        ({"limits": {"cpu": True}}, "limits.cpu: found yes"),
        ({"limits": {"pids": 0}}, "limits.pids: found 0"),
        ({"limits": {"open_files": 2}}, "limits.open_files: found 2"),
        ({"limits": {"nice": 20}}, "limits.nice: found 20"),
        ({"limits": {"nice": "low"}}, "limits.nice: found 'low'"),
        ({"limits": {"io_priority": "fast"}}, "limits.io_priority: found 'fast'"),
        ({"limits": {"io_priority": "best-effort/8"}}, "limits.io_priority"),
        ({"limits": {"io_priority": "idle/1"}}, "limits.io_priority"),
        ({"limits": 5}, "limits: found 5; expected a mapping"),
        ({"private_tmp": "some"}, "private_tmp: found 'some'"),
        ({"no_new_privileges": "maybe"}, "no_new_privileges: found 'maybe'"),
        ({"read_only_paths": ["etc"]}, "read_only_paths: found 'etc'; expected absolute paths"),
    ],
)
def test_a_mistake_is_named(fields, problem):
    """When the file is read, never when the task runs."""
    _, problems, _ = read(**fields)

    assert len(problems) == 1
    assert f"tasks/t.yml: {problem}" in problems[0]


@pytest.mark.parametrize(
    ("limits", "note"),
    [
        ({"cpu": "50%"}, "limits.cpu: found '50%', which cannot hold here: no control group"),
        ({"memory": "64MiB"}, "limits.memory: found '64MiB', which holds for each process"),
        ({"pids": 9}, "limits.pids: found 9, which is only looked after"),
    ],
)
def test_what_needs_control_groups_is_warned_of(monkeypatch, limits, note):
    """A limit that is not there is worse than none: somebody relies on it."""
    monkeypatch.setattr(cgroups, "available", lambda: FEW)

    _, problems, notes = read(limits=limits)

    assert problems == []
    assert len(notes) == 1
    assert f"tasks/t.yml: {note}" in notes[0]
    assert "Delegate=yes" in notes[0]


def test_another_user_s_processes_count_together(monkeypatch):
    """RLIMIT_NPROC is a limit of the user's."""
    monkeypatch.setattr(cgroups, "available", lambda: FEW)
    options = Options({"limits": {"pids": 9}, "as_user": "nobody"}, "tasks/t.yml")

    read_confinement(options)

    assert "holds for all processes of the user" in str(options.notes[0])


@pytest.mark.parametrize(
    ("fields", "key"),
    [
        ({"limits": {"nice": -1}}, "limits.nice"),
        ({"limits": {"io_priority": "realtime"}}, "limits.io_priority"),
        ({"private_tmp": True}, "private_tmp"),
        ({"read_only_paths": "/etc"}, "read_only_paths"),
    ],
)
def test_what_needs_root_is_warned_of(monkeypatch, fields, key):
    """Such a task fails, or runs without."""
    monkeypatch.setattr("os.geteuid", lambda: 1000)

    _, problems, notes = read(**fields)

    assert problems == []
    assert len(notes) == 1
    assert f"tasks/t.yml: {key}: " in notes[0]
    assert "root" in notes[0]


def test_a_read_only_path_that_is_not_there_is_warned_of():
    """The task fails as long as it is missing."""
    _, problems, notes = read(read_only_paths=["/nonexistent"])

    assert problems == []
    assert "read_only_paths: found /nonexistent, which is not there" in notes[0]


def test_a_missing_tool_is_a_mistake(monkeypatch):
    """Named with its package, when the file is read."""
    monkeypatch.setattr("shutil.which", lambda name: None)

    _, problems, _ = read(limits={"open_files": 64})

    assert "prlimit is not installed: install the package util-linux" in problems[0]


def test_what_a_control_group_holds_needs_no_second_limit():
    """A group counts all of a tree, a resource limit each process by itself."""
    found = Confinement(memory=MIB, pids=3)

    assert [word for word in found.prefix(()) if "=" in word] == [f"--data={MIB}", "--nproc=3"]
    assert found.prefix(ALL) == []
