"""
What comes back to a client, put together.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, NamedTuple

from .errors import TaskAgentError
from .messages import decode

_ENDED = ("done", "error", "rejected")


class Outcome(StrEnum):
    """How a request ended as a whole; the worst of what happened."""

    DONE = "done"
    """At least one node accepted, and all that accepted are done."""
    ERROR = "error"
    """A node that accepted failed."""
    REJECTED = "rejected"
    """A node refused, and none failed."""
    UNFINISHED = "unfinished"
    """A node that accepted did not end in time."""
    NO_ANSWER = "no answer"
    """No node accepted in time."""


class ClientError(TaskAgentError):
    """The request could not be sent, or the answers could not be received."""


class FeedbackLost(ClientError):
    """Responses were kept, and are not any more: trimmed, expired, or Redis has lost them."""


@dataclass
class NodeRun:
    """What one node did; two nodes may have the same name.

    Attributes:
        src: The node's name.
        status: accepted, rejected, done or error: the last it said.
        reason: Why it was rejected or failed.
        data: The result, pieces put together; "" before the end.
        result: How the process ended, where `options.result` has asked for it.
        responses: Every message as it came, without live output.
    """

    src: str
    status: str
    reason: str = ""
    data: Any = ""
    result: dict[str, Any] | None = None
    responses: list[dict[str, Any]] = field(default_factory=list)
    _pieces: list[str] = field(default_factory=list)
    _next: tuple[str, int, int] | None = None  # status, number and how many; None before the end

    @property
    def ended(self) -> bool:
        """Whether nothing more is to come."""
        return self.status in _ENDED

    def expects(self, response: Mapping[str, Any]) -> bool:
        """Whether *response* can be the next message of this run."""
        if self.ended or response["status"] == "rejected":
            return False
        if response["status"] == "progress":
            return True
        # Of two nodes of one name that end at the same time this tells what can be told:
        # nothing else in a piece says whose it is.
        return self._next in (None, _place(response))

    def add(self, response: dict[str, Any]) -> None:
        """Take the next message."""
        if response["status"] == "progress":
            return
        self.responses.append(response)
        self.result = response.get("result", self.result)
        status, chunks = response["status"], response.get("chunks", 1)
        if status in _ENDED and chunks > 1:
            self._next = (status, response["chunk"] + 1, chunks)
            self._pieces.append(response["data"])
            if response["chunk"] < chunks:
                return
            whole = "".join(self._pieces)
            in_json = response.get("encoding") == "json" and len(self._pieces) == chunks
            self.data = decode(whole) if in_json else whole
        elif status in _ENDED:
            self.data = response.get("data", "")
        self.status = status
        self.reason = response.get("reason", "")


def _place(response: Mapping[str, Any]) -> tuple[str, int, int]:
    return response["status"], response.get("chunk", 1), response.get("chunks", 1)


@dataclass
class Result:
    """All that came back.

    Attributes:
        uuid: The request's.
        receivers: How many agents the server handed the request to, if it tells.
        runs: One for each node that said something, in that order.
        unreadable: Messages on the feedback channel that were no responses.
        pool: Whether one member of a pool runs it: who takes over from one that has died
            ends it for all.
    """

    uuid: str
    receivers: int | None = None
    runs: list[NodeRun] = field(default_factory=list)
    unreadable: int = 0
    pool: bool = False

    @property
    def unfinished(self) -> list[NodeRun]:
        """Those that accepted, and whose end is still to come."""
        if self.pool and any(run.ended for run in self.runs):
            return []
        return [run for run in self.runs if not run.ended]

    @property
    def outcome(self) -> Outcome:
        """The whole in one word."""
        states = {run.status for run in self.runs if run.ended}
        states |= {run.status for run in self.unfinished}
        for status, outcome in (
            ("error", Outcome.ERROR),
            ("accepted", Outcome.UNFINISHED),
            ("rejected", Outcome.REJECTED),
            ("done", Outcome.DONE),
        ):
            if status in states:
                return outcome
        return Outcome.NO_ANSWER

    @property
    def ended(self) -> bool:
        """Whether everybody who accepted has ended."""
        return bool(self.runs) and not self.unfinished

    @property
    def complete(self) -> bool:
        """Whether everybody who got the request has ended: nobody else can come."""
        if self.pool:
            return self.ended
        return self.receivers is not None and self.ended and len(self.runs) >= self.receivers

    def add(self, response: dict[str, Any]) -> NodeRun:
        """File a response under the run it belongs to."""
        src = str(response.get("src", ""))
        if response["status"] != "accepted":
            # Of a pool's members the one that came last runs it, also where it is the
            # same one again; whatever an earlier attempt has said is over.
            for run in reversed(self.runs) if self.pool else self.runs:
                if run.src == src and run.expects(response):
                    run.add(response)
                    return run
        run = NodeRun(src, "accepted")
        run.add(response)
        self.runs.append(run)
        return run


class Posted(NamedTuple):
    """A request that somebody may ask after later, from anywhere.

    Attributes:
        uuid: The request's.
        feedback_stream: Where its responses are kept; empty if nowhere.
        cursor: The entry of that stream after which they come; "0" for all of it.
        pool: See `Result`.
    """

    uuid: str
    feedback_stream: str
    cursor: str = "0"
    pool: bool = False
