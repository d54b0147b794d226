"""
The agent's own tasks: an answer that the agent itself gives.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from ..interfaces import Job, Output


class AnswerBroker:
    """Answers with what a function returns.

    Args:
        answer: Called with each job; its result, awaited if it can be, is sent as JSON.
    """

    def __init__(self, answer: Callable[[Job], Any]) -> None:
        self._answer = answer

    async def run(self, job: Job, output: Output) -> None:
        value = self._answer(job)
        output.result(await value if isinstance(value, Awaitable) else value)

    async def close(self) -> None:
        """Holds nothing."""
