"""Control groups that are delegated as the service manager does it."""

import asyncio
import os
from pathlib import Path

from ngcp_task_agent.processes import adopt_orphans

from .trees import shorten


def move_into(group):
    """Be in there, as if the service manager had started this process in it."""
    group.joinpath("cgroup.procs").write_text(str(os.getpid()))
    adopt_orphans(asyncio.get_running_loop())
    shorten()


def own_group():
    """The path of the group this process is in, from its hierarchy's root."""
    return Path("/proc/self/cgroup").read_text().splitlines()[-1].rpartition("::")[2]


def groups_of_programs(group):
    return [path.name for path in group.iterdir() if path.name.startswith("job-")]


def remove_group(group):
    """Remove it with all groups in it; nobody may be left there."""
    for place, _, _ in os.walk(group, topdown=False):
        os.rmdir(place)
