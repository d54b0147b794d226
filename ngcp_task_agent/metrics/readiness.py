"""
Whether requests would be heard: every backend's other side is asked, and has to answer.

A connection that stands proves nothing: behind a dead network it stands for minutes.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping

from ..errors import BackendError
from ..interfaces import Backend, Reaching
from .view import View

ANSWER = 2.0  # seconds for the other side to answer
FRESH = 1.0  # seconds in which nobody is asked again

log = logging.getLogger(__name__)


class Readiness:
    """Asks, not more often than every `FRESH` seconds, whoever wants to know how often.

    Args:
        view: Whose backends.
    """

    def __init__(self, view: View) -> None:
        self._view = view
        self._turn = asyncio.Lock()
        self._asked = -FRESH  # loop time
        self._found: dict[str, str] = {}

    async def look(self) -> Mapping[str, str]:
        """What is wrong with each configured backend; empty for those that are reached.

        Takes at most about `ANSWER` seconds.
        """
        loop = asyncio.get_running_loop()
        async with self._turn:  # they who come meanwhile share what the first finds
            if loop.time() - self._asked >= FRESH:
                self._found = await self._look()
                self._asked = loop.time()
            return self._found

    async def _look(self) -> dict[str, str]:
        backends = self._view.backends()
        found = dict.fromkeys(self._view.configured(), "is not to be had, see the node's log")
        troubles = await asyncio.gather(*(_trouble(backend) for backend in backends.values()))
        return {**found, **dict(zip(backends, troubles, strict=True))}


async def _trouble(backend: Backend) -> str:
    """Why *backend* is not reached; empty if it is."""
    state = backend.state()
    if not state.connected:
        return f"is not reached: {state.text}"
    if not isinstance(backend, Reaching):
        return "" if state.sound else f"is stuck: {state.text}"
    try:
        async with asyncio.timeout(ANSWER):
            await backend.reach()
    except TimeoutError:
        return f"does not answer within {ANSWER:g} s: {state.text}"
    except BackendError as exc:
        return f"is not reached: {exc}"
    except Exception as exc:  # a bug in somebody's backend must not pass for health
        log.exception("a backend could not be asked")
        return f"is not reached: {type(exc).__name__}"
    return ""
