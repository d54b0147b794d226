"""Programs in control groups of their own, in a real hierarchy of version 2."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from .groups import remove_group

pytestmark = [pytest.mark.root, pytest.mark.concurrency]

# Runs as the agent would: inside a group that was delegated to it.
AGENT = """
import asyncio, os, sys
from ngcp_task_agent import processes

HIDES = '''
trap "" TERM
(env -i setsid sh -c 'trap "" TERM; exec >/dev/null 2>&1; sleep 0.3; sleep 1000.%(mark)s' &)
sleep 1000.%(mark)s
'''

async def main():
    loop = asyncio.get_running_loop()
    processes.adopt_orphans(loop)
    processes.KILL_AFTER = 0.3
    # One that was there before: what hides could be its as well, by every other sign.
    other = processes.Program(["sleep", "1000"], {"PATH": os.environ["PATH"]})
    program = processes.Program(
        ["sh", "-c", HIDES % {"mark": sys.argv[1]}], {"PATH": os.environ["PATH"]}
    )
    with open(f"/proc/{program.pid}/cgroup") as file:
        print(file.read().splitlines()[-1].rpartition("/")[2], flush=True)
    await asyncio.sleep(0.6)
    await program.end()
    print(sorted(n for n in os.listdir(sys.argv[2]) if n.startswith("job-")), flush=True)
    await other.end()
    print(sorted(n for n in os.listdir(sys.argv[2]) if n.startswith("job-")), flush=True)

asyncio.run(main())
"""


@pytest.fixture
def delegated() -> Iterator[Path]:
    """A group that says it is delegated, as systemd marks one."""
    mounts = [line.split() for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    places = [fields[4] for fields in mounts if fields[fields.index("-") + 1] == "cgroup2"]
    if not places or not os.access(places[0], os.W_OK) or os.geteuid() != 0:
        pytest.skip("needs root and a writable control group hierarchy of version 2")
    group = Path(places[0], f"ngcp-task-agent-test-{os.getpid()}")
    try:
        group.mkdir()
        os.setxattr(group, "user.delegate", b"1")
    except OSError as exc:
        pytest.skip(f"no control group can be made here: {exc}")
    yield group
    end = time.monotonic() + 10
    while group.exists():
        try:
            remove_group(group)
        except OSError:
            assert time.monotonic() < end, "somebody is left in the group"
            time.sleep(0.05)


def alive(mark: str) -> list[str]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if f"1000.{mark}".encode() in path.read_bytes().split(b"\0"):
                found.append(path.parent.name)
        except OSError:
            continue
    return found


def test_who_hides_from_everything_else_is_found_in_its_group(delegated: Path) -> None:
    """No session, no parent, no environment, no pipe: the group is what is left."""
    mark = str(os.getpid())
    enter = f"open({str(delegated / 'cgroup.procs')!r}, 'w').write('0')\n"
    argv = [sys.executable, "-c", enter + AGENT, mark, str(delegated)]

    said = subprocess.run(argv, capture_output=True, text=True, timeout=30, check=True).stdout

    assert said.splitlines() == ["job-2", "['job-1']", "[]"]
    assert alive(mark) == []
