"""
What monitoring may know of the daemon: everything by a question, nothing to change.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from ..agent import Agent
from ..dispatch import Task
from ..facts import Age
from ..interfaces import Backend
from ..journal import Journal


@dataclass(frozen=True)
class View:
    """The daemon as it is at the moment of the question.

    Attributes:
        agent: Its jobs and counts.
        tasks: Those that are configured, and the agent's own, by name.
        backends: Those that are served, by name.
        configured: Names of those that ought to be.
        ages: How old the facts' sources are.
        journal: Where requests are recorded; None for nowhere.
        problems: How many mistakes there are in the files.
        phase: starting, serving or stopping.
    """

    agent: Agent
    tasks: Callable[[], Mapping[str, Task]]
    backends: Callable[[], Mapping[str, Backend]]
    configured: Callable[[], Collection[str]]
    ages: Callable[[], list[Age]]
    journal: Journal | None
    problems: Callable[[], int]
    phase: Callable[[], str]
