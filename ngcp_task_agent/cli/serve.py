"""
``ngcp-task-agent``: serves in the foreground.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import resource
import sys
from collections.abc import Callable

from ..daemon import Daemon
from ..errors import ConfigError
from ..memory import return_large_blocks
from ..systemd import Notifier

DESCRIPTORS = 8192
EXIT_OK = 0
EXIT_FAILED = 1
EXIT_CONFIG = 78  # EX_CONFIG, sysexits.h


log = logging.getLogger(__name__)


def serve(directory: str) -> int:
    """Run the daemon until it is told to stop; the exit status."""
    _set_title()
    return_large_blocks()
    _allow_descriptors()
    try:
        _run(directory)
    except ConfigError as exc:
        for problem in exc.problems:
            print(problem, file=sys.stderr)
        return EXIT_CONFIG
    except OSError as exc:
        print(f"ngcp-task-agent: {exc}", file=sys.stderr)
        return EXIT_FAILED
    # All is answered and ended. What is left, a function that does not heed its
    # cancellation or a thread that hangs, must not keep the process.
    logging.shutdown()
    os._exit(EXIT_OK)


def _run(directory: str) -> None:
    loop = asyncio.Runner(loop_factory=_loop_factory()).get_loop()
    daemon = loop.create_task(_serve(directory))
    while True:
        try:
            return loop.run_until_complete(daemon)
        except (SystemExit, KeyboardInterrupt):
            # Raised in a task that somebody's function has made in our loop, and which
            # asyncio lets through to here.
            if daemon.done():
                raise
            log.exception("a task's function has tried to end the agent")


async def _serve(directory: str) -> None:
    daemon = Daemon(directory, Notifier())
    gc.collect()
    gc.freeze()  # what is loaded now stays; no need to look through it again
    await daemon.run()


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ImportError:  # works without, more slowly
        return None
    return uvloop.new_event_loop


def _allow_descriptors() -> None:
    """A running job takes three descriptors; 1024, the usual limit, is soon reached."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < DESCRIPTORS:
        wanted = DESCRIPTORS if hard == resource.RLIM_INFINITY else min(DESCRIPTORS, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _set_title() -> None:
    try:
        import setproctitle
    except ImportError:
        return
    setproctitle.setproctitle("ngcp-task-agent")
