"""
What this agent tells of itself to all who may look: its record, see `presence`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping

from . import __version__
from .agent import Agent
from .destination import Node
from .dispatch import Dispatcher
from .presence import LIMIT, Fact, NodeRecord, TaskMark, encode_record

log = logging.getLogger(__name__)


class OwnRecord:
    """Makes it anew each time it is called.

    Args:
        identity: Tells this agent from others of the same name.
        agent: Whose jobs are counted.
        dispatcher: Whose tasks are told; its own are every agent's, and are not.
        node: What this host is now.
        facts: What is known of it, stale facts included.
        clock: Seconds, monotonic; replaced in tests.
    """

    def __init__(
        self,
        identity: str,
        agent: Agent,
        dispatcher: Dispatcher,
        node: Callable[[], Node],
        facts: Callable[[], Mapping[str, Fact]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._identity = identity
        self._agent = agent
        self._dispatcher = dispatcher
        self._node = node
        self._facts = facts
        self._clock = clock
        self._began = clock()
        self._left_out = 0  # when last told

    def __call__(self) -> bytes:
        payload, left_out = encode_record(self._make())
        if left_out != self._left_out:
            self._left_out = left_out
            if left_out:
                log.warning(
                    "presence: %d facts, tasks and aliases are left out: a record has %d KiB",
                    left_out, LIMIT // 1024,
                )  # fmt: skip
        return payload

    def _make(self) -> NodeRecord:
        node = self._node()
        jobs = [run for run in self._agent.runs if not run.own]
        running = sum(run.started is not None for run in jobs)
        return NodeRecord(
            name=node.name,
            instance=self._identity,
            aliases=node.aliases,
            version=__version__,
            uptime=self._clock() - self._began,
            facts=self._facts(),
            tasks={
                task.name: TaskMark(task.digest, task.backend, task.control_channel)
                for task in self._dispatcher.tasks.values()
                if task.backend
            },
            running=running,
            queued=len(jobs) - running,
        )
