"""
Everything this package raises on purpose.

* TaskAgentError
  - ConfigError        files under /etc are wrong           -> reported; exit status 78
  - PluginError        a named plug-in is missing or twice  -> reported as a ConfigError
  - MessageError       the bytes are not a valid request    -> counted, logged, not answered
  - NotForThisNode     `dst` or the task is somebody else's -> silence
  - Rejected           understood, but not to be run        -> status "rejected"
  - BrokerError        accepted, then failed                -> status "error"
  - BackendError       the transport is gone                -> reconnect
  - JournalError       a request cannot be recorded         -> rejected where its task requires it
  - AuditError         a decision cannot be written down    -> not run where its task requires it

Each branch has exactly one consequence, named at the right; code that catches
`TaskAgentError` itself belongs in `cli` only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


class TaskAgentError(Exception):
    """Base class; never raised itself."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One mistake in a configuration file.

    Attributes:
        file: Path below the configuration directory, for example ``tasks/ping.yml``.
        key: Dotted path inside the file, ``broker_options.run``; empty for the whole file.
        found: What stands there.
        expected: What would be right.

    >>> print(Problem("tasks/ping.yml", "broker_options.run", "nothing", "the program to run"))
    tasks/ping.yml: broker_options.run: found nothing; expected the program to run
    """

    file: str
    key: str
    found: str
    expected: str

    def __str__(self) -> str:
        where = f"{self.file}: {self.key}" if self.key else self.file
        return f"{where}: found {self.found}; expected {self.expected}"


class ConfigError(TaskAgentError):
    """Configuration files cannot be used.

    Args:
        problems: At least one, in the order of the files.
    """

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__("\n".join(map(str, problems)))
        self.problems = tuple(problems)


class PluginError(TaskAgentError):
    """A plug-in named in the configuration is unknown, broken, or claimed twice."""


class MessageError(TaskAgentError):
    """Bytes from a backend do not hold a valid request, or a result is no JSON."""


class NotForThisNode(TaskAgentError):
    """The request is somebody else's, or must not be answered from here."""


class Rejected(TaskAgentError):
    """The request names this node and will not be run; the text is its *reason*."""


class BrokerError(TaskAgentError):
    """The work was started, or could not be, and failed; the text becomes the *reason*."""


class BackendError(TaskAgentError):
    """The transport failed or is not there."""


class JournalError(TaskAgentError):
    """A request cannot be recorded; the text says why."""


class AuditError(TaskAgentError):
    """A decision cannot be written down; the text says why."""
