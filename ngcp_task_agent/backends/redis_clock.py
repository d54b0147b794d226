"""
What time it is for everybody on the bus.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

from ..errors import BackendError

ASK_TIMEOUT = 1.0  # seconds for the server to say what time it is


def _since_boot() -> float:
    # Goes on while this process, or the whole host, is stopped; nobody sets it.
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class BusClock:
    """The server's clock, asked for whenever it is needed.

    While the server does not answer it goes on from the last answer by this host's
    time since boot, never by the wall clock, which may be an hour off.

    Args:
        ask: Redis ``TIME``: seconds and microseconds; raises `BackendError` where the
            server is away.
        elapsed: Seconds that pass evenly; replaced in tests.
    """

    def __init__(
        self,
        ask: Callable[[], Awaitable[tuple[int, int]]],
        elapsed: Callable[[], float] = _since_boot,
    ) -> None:
        self._ask = ask
        self._elapsed = elapsed
        self._offset: float | None = None  # of the server's clock to `elapsed`, in seconds
        self._asking: asyncio.Task[None] | None = None

    async def now(self) -> float:
        """Unix seconds; too late by the way to the server at most, never too early.

        Raises:
            BackendError: The server does not answer, and never has.
        """
        if self._asking is None:  # those who come meanwhile share the question
            self._asking = asyncio.create_task(self._refresh(), name="bus clock")
        await asyncio.shield(self._asking)
        if self._offset is None:
            raise BackendError("what time it is on the bus is not known")
        return self._elapsed() + self._offset

    async def _refresh(self) -> None:
        try:
            async with asyncio.timeout(ASK_TIMEOUT):
                try:
                    self._offset = await self._measure()
                except BackendError:  # a connection that was long closed
                    self._offset = await self._measure()
        except (BackendError, OSError, TimeoutError):
            pass  # what is known already has to do
        finally:
            self._asking = None

    async def _measure(self) -> float:
        # From before the question: whoever is stopped before the answer is read must
        # not take that old answer for the present.
        began = self._elapsed()
        seconds, microseconds = await self._ask()
        return seconds + microseconds / 1e6 - began
