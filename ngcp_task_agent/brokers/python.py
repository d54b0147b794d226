"""
Calls a Python function; what it returns or yields is the answer.

An `async def` runs in the daemon's event loop; a plain function runs in a worker
process of its own, which is ended at the time limit. So does an `async def` that is to
have another user, an environment or limits of its own, or that has ignored its cancellation.
"""

from __future__ import annotations

import os

from ..interfaces import Job, Output
from ..options import Options
from .python_loop import InLoop
from .python_pool import Pool, Settings
from .python_source import is_async


class PythonBroker:
    """Broker options, all but `callable` optional:

    - ``callable``: ``package.module:function``; it gets the request's data as
      keyword arguments, and its result is sent as JSON. What a generator yields is the
      text of the answer as it comes. A parameter ``context`` gets a `context.Context`
    - ``path``: directory the module is looked for in, first; only its owner may be
      able to write there, because the daemon runs what it finds
    - ``worker``: whether an ``async def`` is called in a worker process as well
    - those of `python_pool.Settings`
    """

    def __init__(self, options: Options) -> None:
        callable_ = options.text("callable", required="package.module:function")
        path = options.text("path")
        if path and not os.path.isabs(path):
            path = os.path.join(options.base, path)
        settings = Settings(options)
        coroutine = is_async(callable_, path, options) if callable_ else False
        apart = options.flag("worker") or settings.needed
        self._loop = (
            InLoop(callable_, path, settings.max_output) if coroutine and not apart else None
        )
        self._pool = Pool(callable_, path, settings)

    async def run(self, job: Job, output: Output) -> None:
        if self._loop is not None and not self._loop.stubborn:
            await self._loop.call(job, output)
        else:
            await self._pool.call(job, output)

    async def close(self) -> None:
        self._pool.close()
