"""Waiting for something to become true, never for a time to pass."""

import asyncio
import inspect

LOOK_EVERY = 0.01  # seconds


async def until(condition, seconds=5.0, what=""):
    """Look at *condition* every 10 ms until it holds.

    Args:
        condition: A function without arguments, plain or `async`.
        seconds: The test fails when it does not hold by then.
        what: Named in the failure, for example ``"subscribed"``.

    Returns:
        What the condition returned at last.
    """
    end = asyncio.get_running_loop().time() + seconds
    while True:
        held = condition()
        if inspect.isawaitable(held):
            held = await held
        if held:
            return held
        if asyncio.get_running_loop().time() > end:
            what = what or inspect.getsource(condition)
            raise AssertionError(f"not within {seconds:g} s: {what}")
        await asyncio.sleep(LOOK_EVERY)
