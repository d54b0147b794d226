"""
Monitoring as a whole: off until it is configured, and then three paths.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from ..listening import Listening
from ..tally import Tally
from .endpoint import Answer, Endpoint
from .readiness import Readiness
from .view import View

if TYPE_CHECKING:
    from .collector import Exposition

FRESH = 1.0  # seconds in which who asks again gets the same text; it takes the loop's time

log = logging.getLogger(__name__)


class Monitoring:
    """Serves ``/metrics``, ``/livez`` and ``/readyz`` where the settings say.

    Args:
        view: What is told.
    """

    def __init__(self, view: View) -> None:
        self._view = view
        self._where: Listening | None = None
        self._endpoint: Endpoint | None = None
        self._readiness = Readiness(view)
        self._exposition: Exposition | None = None
        self._written = -FRESH  # loop time
        self._text = b""

    async def apply(self, where: Listening | None) -> None:
        """Listen at *where*, and nowhere else; None turns it off.

        A place that cannot be had is logged, and tried again with the next call: the
        agent works without.
        """
        if where == self._where and (self._endpoint is not None or where is None):
            return
        await self.close()
        self._where = where
        if where is None:
            self._view.agent.tally = None
            return
        try:
            from .collector import Exposition
        except ImportError as exc:  # not installed, as `check` says, too; or too old
            log.error("metrics: not to be had: %s", exc)
            return
        self._exposition = self._exposition or Exposition(self._view)
        if self._view.agent.tally is None:
            self._view.agent.tally = Tally()
        endpoint = Endpoint(
            {"/metrics": self._metrics, "/livez": self._alive, "/readyz": self._ready}
        )
        try:
            await endpoint.open(where)
        except OSError as exc:
            log.error("metrics: %s cannot be listened on: %s", where, exc.strerror or exc)
            return
        self._endpoint = endpoint
        log.info("metrics: listening on %s", where)

    async def close(self) -> None:
        """Listen no more."""
        endpoint, self._endpoint = self._endpoint, None
        if endpoint is not None:
            await endpoint.close()

    async def _metrics(self) -> Answer:
        from .collector import CONTENT_TYPE

        troubles = await self._readiness.look()
        now = asyncio.get_running_loop().time()
        if now - self._written >= FRESH:
            assert self._exposition is not None
            self._text = self._exposition.text(troubles)
            self._written = now
        return Answer(200, self._text, CONTENT_TYPE)

    async def _alive(self) -> Answer:
        """The loop turns, else nobody would say so."""
        return Answer(200, b"ok\n")

    async def _ready(self) -> Answer:
        phase = self._view.phase()
        if phase != "serving":
            return Answer(503, f"{phase}\n".encode())
        troubles = await self._readiness.look()
        lines = [f"backend {name} {why}\n" for name, why in sorted(troubles.items()) if why]
        return Answer(503, "".join(lines).encode()) if lines else Answer(200, b"ok\n")
