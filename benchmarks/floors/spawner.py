"""Start programs, a fixed number at a time, and wait for each by its pidfd on uvloop.

Reads a line of JSON, `{"argv": [...], "count": 600, "at_once": 16, "pipes": true}`,
runs that, and answers with one, `{"seconds": 0.4, "own": 0.2, "all": 0.5}`: the time it
took, and processor time without and with that of the programs. Ends with its input.
"""

from __future__ import annotations

import asyncio
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Sequence

import uvloop


class Spawner:
    """Runs *argv* *count* times, *at_once* side by side.

    Args:
        argv: Program and arguments.
        count: How often.
        at_once: How many side by side.
        pipes: Whether standard output and error are pipes, read to their end
            when the program has ended, or `/dev/null`.
    """

    def __init__(self, argv: Sequence[str], count: int, at_once: int, pipes: bool) -> None:
        self._argv = argv
        self._to_start = count
        self._running = 0
        self._at_once = at_once
        self._sink = subprocess.PIPE if pipes else subprocess.DEVNULL
        self._loop = asyncio.get_running_loop()
        self._finished = self._loop.create_future()

    async def run(self) -> None:
        """Return when the last one has ended."""
        for _ in range(min(self._at_once, self._to_start)):
            self._start()
        await self._finished

    def _start(self) -> None:
        self._to_start -= 1
        self._running += 1
        # close_fds stays on and there is no user= or preexec_fn=: CPython then
        # starts the program with vfork.
        process = subprocess.Popen(
            self._argv,
            stdin=subprocess.DEVNULL,
            stdout=self._sink,
            stderr=self._sink,
            start_new_session=True,
        )
        pidfd = os.pidfd_open(process.pid)
        self._loop.add_reader(pidfd, self._ended, process, pidfd)

    def _ended(self, process: subprocess.Popen[bytes], pidfd: int) -> None:
        self._loop.remove_reader(pidfd)
        os.close(pidfd)
        for pipe in (process.stdout, process.stderr):
            if pipe is not None:
                pipe.read()
                pipe.close()
        self._running -= 1
        if process.wait() != 0:
            self._finished.set_exception(RuntimeError(f"{self._argv} failed"))
        elif self._to_start:
            self._start()
        elif not self._running:
            self._finished.set_result(None)


async def serve() -> None:
    """Answer each line; the loop has nothing else to do while it waits for the next."""
    for line in sys.stdin:
        spawner = Spawner(**json.loads(line))
        began, own, programs = time.perf_counter(), time.process_time(), _programs()
        await spawner.run()
        seconds, own = time.perf_counter() - began, time.process_time() - own
        answer = {"seconds": seconds, "own": own, "all": own + _programs() - programs}
        print(json.dumps(answer), flush=True)


def _programs() -> float:
    waited = resource.getrusage(resource.RUSAGE_CHILDREN)
    return waited.ru_utime + waited.ru_stime


if __name__ == "__main__":
    uvloop.run(serve())
