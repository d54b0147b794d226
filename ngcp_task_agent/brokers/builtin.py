"""
The agent's own tasks: an answer that the agent itself gives.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..interfaces import Job, Output


class AnswerBroker:
    """Answers with what a function returns.

    Args:
        answer: Called without arguments for each job; its result is sent as JSON.
    """

    def __init__(self, answer: Callable[[], Any]) -> None:
        self._answer = answer

    async def run(self, job: Job, output: Output) -> None:
        output.result(self._answer())

    async def close(self) -> None:
        """Holds nothing."""
