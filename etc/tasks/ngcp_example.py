"""The function of python.yml.example, and one of each other kind."""

from __future__ import annotations

import time
from collections.abc import Iterator

from ngcp_task_agent.context import Context, progress


def add(a: float, b: float) -> float:
    """The sum of two numbers."""
    return a + b


def count(to: int = 3) -> Iterator[str]:
    """A generator: a client that reads along sees each line as it comes."""
    for number in range(1, to + 1):
        yield f"{number}\n"


def wait(context: Context, seconds: float = 1.0) -> str:
    """A parameter `context` tells who asks, until when, and whether to end."""
    context.log.info("%s waits for %g s", context.request.src, seconds)
    end = time.time() + seconds
    while time.time() < end and not context.cancelled:
        progress({"left": round(end - time.time(), 1)})
        time.sleep(0.1)
    return "too early" if context.cancelled else "now"
