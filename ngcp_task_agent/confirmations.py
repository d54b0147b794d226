"""
Which answers have left: noted in the journal, many at a time.
"""

from __future__ import annotations

import asyncio
import logging

from .interfaces import Backend
from .journal import Entry, Journal
from .route import Route

LINGER = 0.005  # seconds in which answers are gathered, and one look serves them all

log = logging.getLogger(__name__)


class Confirmations:
    """Waits for backends, so that no job has to.

    Args:
        journal: Where it is noted.
    """

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._waiting: dict[Backend, list[tuple[str, Entry]]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def add(self, route: Route, entry: Entry) -> None:
        """The answer to *entry* has been handed over to a backend, and is to leave."""
        waiting = self._waiting.get(route.backend)
        if waiting is None:
            self._waiting[route.backend] = [(route.address, entry)]
            task = asyncio.ensure_future(self._confirm(route.backend))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        else:
            waiting.append((route.address, entry))

    async def _confirm(self, backend: Backend) -> None:
        while True:
            await asyncio.sleep(LINGER)
            waiting, self._waiting[backend] = self._waiting[backend], []
            if not waiting:
                break
            addresses = {address for address, _ in waiting}
            try:
                for address in addresses if not backend.shared else list(addresses)[:1]:
                    await backend.flush(address)
            except Exception as exc:  # they are sent again at the next start
                log.warning("nobody knows whether %d answers have left: %s", len(waiting), exc)
                continue
            for _, entry in waiting:
                self._journal.sent(entry)
        del self._waiting[backend]

    async def settle(self, seconds: float) -> None:
        """Wait for those that are on their way; what is away then is sent at the next start."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=seconds)
