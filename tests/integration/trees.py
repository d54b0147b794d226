"""Process trees that are hard to end, and programs that make them."""

import asyncio
import os
import signal

import psutil

from ngcp_task_agent import processes
from ngcp_task_agent.processes import Program

from .alone import descendants
from .waiting import until

ENV = {"PATH": os.environ["PATH"], "LANG": "C.UTF-8"}

# Name to a shell script that makes the tree, and how many processes it has then.
TREES = {
    "plain": ("sleep 60 & sleep 60; :", 3),
    "ignores TERM": ("trap '' TERM; sleep 60 & sleep 60; :", 3),
    "own sessions": ("setsid sleep 60 & setsid sleep 60 & sleep 60; :", 4),
    "double fork": ("( (sleep 60 &) ); sleep 60; :", 3),
    "double fork, own session": ("( (setsid sleep 60 &) ); sleep 60; :", 3),
    "env -i, double fork": (
        "( (exec env -i setsid sleep 60 </dev/null >/dev/null 2>&1 &) ); sleep 60; :",
        3,
    ),
    "stopped child": ("sh -c 'kill -STOP $$; sleep 60' & sleep 60; :", 3),
    "stopped, ignores TERM": ("trap '' TERM; sh -c 'kill -STOP $$; sleep 60' & sleep 60; :", 3),
    "one more at each TERM": ("trap 'setsid sleep 60 &' TERM; while :; do sleep 60; done", 2),
    "everything": (
        "trap '' TERM; ( (exec env -i setsid sleep 60 </dev/null >/dev/null 2>&1 &) );"
        " setsid sh -c 'kill -STOP $$; sleep 60' & ( (sleep 60 &) ); sleep 60; :",
        5,
    ),
}

# Leaves one process which nothing connects with the program it came from.
HIDER = "( (exec env -i setsid sleep 60 </dev/null >/dev/null 2>&1 &) ); exec sleep 60"


def start(script, **options):
    """A shell that runs *script*, as a program of the agent's."""
    return Program(["/bin/sh", "-c", script], ENV, **options)


async def start_tree(name):
    """Start one of `TREES` and wait until all of it is there."""
    script, size = TREES[name]
    program = start(script)
    await until(lambda: settled(size, "STOP" in script), what=f"{name}: {size} processes")
    return program


def settled(size, with_stopped):
    """Whether there are *size* processes, every one of them what it will stay."""
    names = []
    states = []
    for process in descendants():
        try:
            names.append(process.name())
            states.append(process.status())
        except psutil.NoSuchProcess:
            return False
    passing = {"setsid", "env"} & set(names) or psutil.STATUS_ZOMBIE in states
    stopped = psutil.STATUS_STOPPED in states
    return len(names) == size and not passing and stopped == with_stopped


def shorten(seconds=0.4):
    """Let SIGKILL follow SIGTERM sooner than in the daemon."""
    processes.KILL_AFTER = seconds


async def read_all(program):
    """All of stdout."""
    pieces = []
    while piece := await program.read():
        pieces.append(piece)
    return b"".join(pieces)


async def keep_busy(count):
    """Start *count* processes that take all processor time they get; end them with `end_busy`."""
    script = "while :; do :; done"
    return [await asyncio.create_subprocess_exec("sh", "-c", script) for _ in range(count)]


async def end_busy(busy):
    """End them and wait for it."""
    for process in busy:
        process.send_signal(signal.SIGKILL)
        await process.wait()
