"""Event loops that report what nobody waited for."""

import asyncio
import importlib.util
import socket

import pytest

HAS_UVLOOP = importlib.util.find_spec("uvloop") is not None

OURS = "uvloop" if HAS_UVLOOP else "asyncio"  # what the agent takes

both_loops = pytest.mark.parametrize(
    "loop",
    [
        "asyncio",
        pytest.param("uvloop", marks=pytest.mark.skipif(not HAS_UVLOOP, reason="no uvloop")),
    ],
)


def run(coroutine, seconds, loop):
    """Run *coroutine* for at most *seconds* in a loop of its own.

    Raises:
        AssertionError: A callback or a task failed that nobody looked at.
    """
    complaints = []
    with asyncio.Runner(loop_factory=_factory(loop)) as runner:
        runner.get_loop().set_exception_handler(lambda _, context: complaints.append(context))
        runner.run(_limited(coroutine, seconds))
    assert not complaints, complaints


def _factory(name):
    if name == "asyncio":
        return asyncio.new_event_loop
    import uvloop

    return uvloop.new_event_loop


async def _limited(coroutine, seconds):
    async with asyncio.timeout(seconds):
        await _warm_up()
        await coroutine


async def _warm_up():
    """Let uvloop open now what it keeps open from its first stream on, so that a test
    which counts descriptors finds as many afterwards as before."""
    ours, theirs = socket.socketpair()
    with theirs:
        _, writer = await asyncio.open_connection(sock=ours)
        writer.close()
        await writer.wait_closed()
