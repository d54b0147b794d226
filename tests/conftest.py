"""`async def` tests without a plug-in; properties without a stopwatch."""

import asyncio
import inspect

import pytest
from hypothesis import settings

TEST_TIMEOUT = 20.0  # seconds; a test that hangs must fail by itself

# A property says what is true, not how fast: a busy machine is no counterexample.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem):
    """Run a coroutine function to its end, in an event loop of its own."""
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    wanted = pyfuncitem._fixtureinfo.argnames
    arguments = {name: pyfuncitem.funcargs[name] for name in wanted}
    asyncio.run(_limited(pyfuncitem.obj, arguments))
    return True


async def _limited(function, arguments):
    try:
        async with asyncio.timeout(TEST_TIMEOUT):
            await function(**arguments)
    finally:  # what belongs to this loop cannot be closed by a fixture, outside of it
        for argument in arguments.values():
            if inspect.iscoroutinefunction(getattr(argument, "aclose", None)):
                await argument.aclose()
