"""Runs a test in a Python process of its own, set up as the daemon sets itself up.

A child subreaper and a handler for SIGCHLD would disturb pytest, and the test could
not tell its own children from those of other tests.
"""

import asyncio
import contextlib
import functools
import importlib
import inspect
import json
import os
import signal
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path

import psutil
import pytest

from ngcp_task_agent.processes import adopt_orphans

from . import loops

LIMIT = 60.0  # seconds for one such test
START = 10.0  # seconds for the process to start and to end
ROOT = Path(__file__).parents[2]
_PATHS = ("control_group", "place", "tmp_path")


def in_own_process(test):
    """Let an `async def` test run in a process that adopts orphans.

    Its arguments are handed over as JSON; one called ``loop`` chooses the event loop.
    """

    @functools.wraps(test)
    def outside(**arguments):
        where = f"{test.__module__}:{test.__name__}"
        words = [sys.executable, "-W", "error", "-m", __name__, where]
        words.append(json.dumps(arguments, default=str))
        # A file and no pipe: a survivor that holds a pipe would hold up the report.
        with tempfile.TemporaryFile() as said:
            child = subprocess.Popen(
                words, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=said, stderr=said
            )
            try:
                code = child.wait(LIMIT + START)
            except subprocess.TimeoutExpired:
                end_descendants(child.pid)
                child.kill()
                code = child.wait()
            said.seek(0)
            if code:
                text = said.read().decode(errors="replace")
                pytest.fail(f"exit status {code}\n{text}", pytrace=False)

    return outside


def descendants(pid=None):
    """All processes below *pid*, by default below this one, zombies included."""
    return psutil.Process(pid).children(recursive=True)


def names():
    """What runs below this process, by name."""
    found = []
    for process in descendants():
        with contextlib.suppress(psutil.NoSuchProcess):
            found.append(process.name())
    return found


def zombies():
    """The children of this process that have ended and are not reaped."""
    return [
        child
        for child in psutil.Process().children()
        if _status(child) in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
    ]


def end_descendants(pid=None):
    """Leave nobody behind, however a test has gone."""
    for process in descendants(pid):
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


def open_files():
    """Descriptor to what it is, of this process."""
    found = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            found[int(name)] = os.readlink(f"/proc/self/fd/{name}")
        except FileNotFoundError:  # the listing itself
            continue
    return found


def _status(process):
    try:
        return process.status()
    except psutil.NoSuchProcess:
        return None


def main():
    """The child: run the test named by the arguments."""
    where, words = sys.argv[1:]
    module, _, name = where.partition(":")
    test = inspect.unwrap(getattr(importlib.import_module(module), name))
    arguments = json.loads(words)
    for key in _PATHS:
        if key in arguments:
            arguments[key] = Path(arguments[key])
    try:
        loops.run(_as_daemon(test, arguments), LIMIT, arguments.get("loop", loops.OURS))
    finally:
        # The handler of the loop that is closed now wants to hear of nobody's end.
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        end_descendants()


async def _as_daemon(test, arguments):
    adopt_orphans(asyncio.get_running_loop())
    try:
        await test(**arguments)
    except BaseException:
        # uvloop closes no earlier than its subprocesses have ended, as far as it knows.
        traceback.print_exc()
        end_descendants()
        os._exit(1)


if __name__ == "__main__":
    main()
