"""A module of functions for python tasks, written where a test wants it."""

import contextlib
import re

import psutil
import pytest

from ngcp_task_agent import processes
from ngcp_task_agent.errors import BrokerError
from ngcp_task_agent.messages import encode

from .alone import descendants
from .jobs import Kept, job, python_broker

SOURCE = """
import asyncio, os, signal, sys, time

async def hello_async(name="you"):
    return {{"hello": name}}

def hello(name="you"):
    return {{"hello": name}}

async def pid_async():
    return os.getpid()

def pid():
    return os.getpid()

{kind} fails():
    raise ValueError("no such\\nuser")

{kind} fails_silently():
    raise KeyError

{kind} exits():
    sys.exit(3)

{kind} interrupted():
    raise KeyboardInterrupt

{kind} surrogate_error():
    raise ValueError("a\\ud800b")

{kind} no_json():
    return {{"file": object()}}

{kind} not_a_number():
    return [float("nan"), float("inf"), 1.5]

{kind} surrogate():
    return "a\\ud800b"

{kind} huge():
    return 2 ** 70

{kind} large(size):
    return "ä" * size

{kind} nothing():
    pass

{kind} keyword(*, needed):
    return needed

{kind} prints():
    print("R" * 100000, flush=True)
    sys.stderr.write("not to be taken for an answer\\n")
    os.write(1, b"R\\0\\0\\0\\2{{}}")
    return "quiet"

async def sleeps_async():
    await asyncio.sleep(60)

def sleeps():
    time.sleep(60)

def ignores_term(path):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    open(path, "w").close()
    time.sleep(60)

def killed():
    os.kill(os.getpid(), signal.SIGKILL)

def leaves():
    os._exit(5)

def waits_a_moment(number):
    time.sleep(0.2)
    return number
"""


class Functions:
    """The module ``functions_…`` in a directory of its own, and brokers for it.

    The name is new for each test: what the loop has imported stays imported.

    Args:
        directory: Where to write it.
        kind: What the functions are that come in both kinds, ``def`` or ``async def``.
    """

    def __init__(self, directory, kind="def"):
        self.directory = directory
        self.module = "functions" + re.sub(r"\W", "_", str(directory))
        self.brokers = []
        directory.joinpath(f"{self.module}.py").write_text(SOURCE.format(kind=kind))

    def broker(self, function):
        made = python_broker(callable=f"{self.module}:{function}", path=str(self.directory))
        self.brokers.append(made)
        return made

    async def call(self, function, **arguments):
        """The result of *function*."""
        output = Kept()
        await self.broker(function).run(job(arguments=arguments), output)
        return output.value

    async def reason(self, function, **arguments):
        """Why *function* failed, as text that can be sent."""
        with pytest.raises(BrokerError) as caught:
            await self.call(function, **arguments)
        encode(str(caught.value))
        return str(caught.value)

    async def close(self):
        for broker in self.brokers:
            await broker.close()
        await processes.all_ended()


@contextlib.asynccontextmanager
async def functions(directory, kind="def"):
    made = Functions(directory, kind)
    try:
        yield made
    finally:
        await made.close()


def workers(functions):
    """The worker processes that call one of these functions."""
    found = []
    for process in descendants():
        with contextlib.suppress(psutil.NoSuchProcess):
            if any(word.startswith(functions.module + ":") for word in process.cmdline()):
                found.append(process)
    return found
