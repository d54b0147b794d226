"""
From a request to a job: is it for this node, is there such a task, is there room?
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from .destination import Node
from .errors import NotForThisNode, Rejected
from .interfaces import Broker, Delivery, Job
from .masking import excess, secrets_in
from .messages import Request
from .retry import NEVER, Retry
from .schemas import Schema

TIMEOUT = 9.5  # seconds from accepted; clients stop listening after 10
MAX_RUNNING = 16  # jobs of one task side by side
MAX_QUEUED = 1000  # jobs of one task waiting
MAX_HELD = 32 * 1024 * 1024  # bytes of requests at work; in memory they take many times that
EXTRA_ARGS = "extra_args"  # in `data`: words for the program, protocol 5.8
LOCAL = "local"  # the backend through which the administrator reaches every task


class Gate:
    """Lets a limited number of jobs run; the others wait in the order they came."""

    __slots__ = ("_max_running", "_waiting", "max_queued", "running")

    def __init__(self, max_running: int = MAX_RUNNING, max_queued: int = MAX_QUEUED) -> None:
        self._max_running = max_running
        self.max_queued = max_queued
        self.running = 0
        self._waiting: deque[asyncio.Future[None]] = deque()

    @property
    def max_running(self) -> int:
        """Places there are; with more of them, those who wait go first."""
        return self._max_running

    @max_running.setter
    def max_running(self, places: int) -> None:
        self._max_running = places
        self._admit()

    @property
    def queued(self) -> int:
        """Jobs that wait."""
        return len(self._waiting)

    @property
    def full(self) -> bool:
        """Whether nobody may join, not even to wait."""
        return self.running >= self.max_running and self.queued >= self.max_queued

    @property
    def room(self) -> int:
        """Places that nobody has or waits for."""
        return max(0, self._max_running - self.running - self.queued)

    def join(self) -> asyncio.Future[None] | None:
        """Take a place, or a future that is done when a place has come free."""
        if self.running < self.max_running:
            self.running += 1
            return None
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(waiter)
        return waiter

    def withdraw(self, waiter: asyncio.Future[None]) -> None:
        """Wait no longer."""
        if waiter.done():
            self.leave()
        else:
            self._waiting.remove(waiter)

    def leave(self) -> None:
        """Give a place back."""
        self.running -= 1
        self._admit()

    def _admit(self) -> None:
        while self._waiting and self.running < self._max_running:
            self.running += 1
            self._waiting.popleft().set_result(None)


@dataclass(frozen=True, slots=True)
class Task:
    """A task file, loaded and checked.

    Attributes:
        name: What requests call it.
        broker: Does the work.
        backend: Name of the backend it listens on; empty for all of them.
        control_channel: Where on that backend.
        description: One line for people.
        timeout: Seconds from accepted to the end, waiting included; None for no limit.
        run_timeout: Seconds from the job's start to its end; None for no limit.
        max_running: Jobs side by side.
        max_queued: Jobs waiting.
        mask: Names of what must not get out: variables, and ``data.…`` of the request.
        gate: Where jobs wait; the same for every version of the file.
        arguments: What a request's `data` has to be; None for anything.
        retry: Whether and when a durable request that has failed is tried again.
        journal_required: Whether it must not run where its request cannot be recorded.
        audit_required: Whether it must not run where that cannot be audited.
        digest: Of its file, hexadecimal; two files that differ have two.
    """

    name: str
    broker: Broker
    backend: str = ""
    control_channel: str = ""
    description: str = ""
    timeout: float | None = TIMEOUT
    run_timeout: float | None = None
    max_running: int = MAX_RUNNING
    max_queued: int = MAX_QUEUED
    mask: Collection[str] = ()
    gate: Gate = field(default_factory=Gate)
    arguments: Schema | None = None
    retry: Retry = NEVER
    journal_required: bool = False
    audit_required: bool = False
    digest: str = ""

    @property
    def masks_data(self) -> bool:
        """Whether parts of a request must not get out; then none of it is quoted."""
        return any(name.startswith("data.") for name in self.mask)

    def adjust_gate(self) -> None:
        """Make the limits those of this version of the file; in the event loop only."""
        self.gate.max_queued = self.max_queued
        self.gate.max_running = self.max_running

    def hears(self, backend: str, control_channel: str) -> bool:
        """Whether requests that came in there may run it."""
        return (
            backend == LOCAL
            or not self.backend
            or (self.backend == backend and self.control_channel == control_channel)
        )


class Wishes(NamedTuple):
    """The request's `options` as far as they concern the way a job is run.

    Attributes:
        timeout: Seconds from accepted to the end; None for no limit.
        stream: Whether the client reads along.
        result: Whether the last answer tells how the process ended.
        ttl: Seconds after `timestamp` in which it may be started; None for ever.
    """

    timeout: float | None = None
    stream: bool = False
    result: bool = False
    ttl: float | None = None


class Admission(NamedTuple):
    """What `admit` has decided.

    Attributes:
        task: What is to be done.
        job: For whom, with what.
        node: The name the answers are signed with.
        wishes: What the client has asked for beside the work itself.
        fault: Why the job cannot succeed; it is to be accepted all the same,
            because the request does not name this node and may not be rejected.
        size: Bytes of the request.
        secrets: Texts in it that the task masks.
        timestamp: When the request was made, in unix seconds of the bus; None if it
            did not say.
        claimed: Whether the request is durable.
    """

    task: Task
    job: Job
    node: str
    wishes: Wishes
    fault: str = ""
    size: int = 0
    secrets: Collection[str] = ()
    timestamp: float | None = None
    claimed: bool = False


class Dispatcher:
    """Decides; never runs anything.

    Args:
        node: Tells what this host is at the moment; called for each request.

    Attributes:
        tasks: By name; replaced as a whole when the files are read again.
        stopping: Whether new requests are refused; the agent's own tasks still answer.
        stopped: Whether all are.
    """

    def __init__(self, node: Callable[[], Node]) -> None:
        self._node = node
        self.tasks: Mapping[str, Task] = {}
        self.stopping = self.stopped = False
        self._held = 0  # bytes of the requests whose jobs wait or run

    @property
    def node_name(self) -> str:
        """What answers are signed with."""
        return self._node().name

    def admit(self, request: Request, delivery: Delivery, backend: str) -> Admission:
        """Accept *request* or say why not.

        Args:
            request: What is wished.
            delivery: How it came.
            backend: Name of the backend it came by.

        Raises:
            NotForThisNode: It is somebody else's, or it cannot be served and does
                not name this node, so that a refusal would be unasked for.
            Rejected: It names this node and cannot be served.
        """
        # The node is asked first: a request for somebody else must not be
        # answered, not even with "unknown task".
        node, named = self.check_destination(request, delivery)
        claim = delivery.claim
        task = self.tasks.get(request.task)
        if task is None or not task.hears(backend, delivery.control_channel):
            raise refusal(named, f"unknown task {request.task!r:.80}")
        crowded = self._crowded(task, len(delivery.payload))
        if crowded:  # what is durable goes back, and comes again
            raise Crowded(crowded) if claim is not None else refusal(named, crowded)
        size = len(delivery.payload)
        wishes, fault = _wishes(request, task)
        if task.arguments is not None:
            fault = fault or task.arguments.fault(request.data, quote=not task.masks_data)
        arguments, secrets = _arguments(request, task), set[str]()
        if task.masks_data:
            secrets = secrets_in(task.mask, {"data": request.plain()})
            over = excess(secrets)
            if over:  # what is not run, and not quoted, has nothing to hide
                fault, secrets = fault or over, set()
        if fault and named:
            raise Rejected(fault)
        deadline = None if wishes.timeout is None else time.time() + wishes.timeout
        job = Job(
            request.task, request.uuid, request.src, request.data, arguments, request.options,
            deadline, claim.attempt if claim is not None else 1,
            node.is_local_to(request.src, delivery.local),
        )  # fmt: skip
        self._held += size
        timestamp = request.timestamp if wishes.ttl is not None else None
        return Admission(
            task, job, node.name, wishes, fault, size, secrets, timestamp, claim is not None
        )

    def check_destination(self, request: Request, delivery: Delivery) -> tuple[Node, bool]:
        """Whether *request* is for this node.

        Returns:
            What this node is now, and whether the request names it, so that it may be
            refused.

        Raises:
            NotForThisNode: It is for others.
            Rejected: It came to one of a pool, and is not for the pool.
        """
        node = self._node()
        if delivery.claim is not None and (pool := delivery.claim.pool):
            dst = str(request.dst)
            if dst not in ("*", pool):
                raise Rejected(f"dst: found {dst!r:.80}; expected '*' or {pool!r}")
            return node, True
        local = node.is_local_to(request.src, delivery.local)
        if not request.dst.selects(node, local):
            raise NotForThisNode
        return node, request.dst.names(node, local)

    def room(self, backend: str, control_channel: str) -> int:
        """How many more jobs of the tasks that listen there could be started at once."""
        return sum(
            task.gate.room
            for task in self.tasks.values()
            if task.backend == backend and task.control_channel == control_channel
        )

    def release(self, admission: Admission) -> None:
        """The job is over, and what its request took is free."""
        self._held -= admission.size

    def _crowded(self, task: Task, size: int) -> str:
        """Why there is no room at the moment; empty if there is."""
        if self.stopped or (self.stopping and task.backend):
            return "the agent is stopping"
        if task.gate.full:
            return f"{task.gate.running} jobs run and {task.gate.queued} wait (max_queued)"
        if self._held and self._held + size > MAX_HELD:
            return "the requests at work are too large together"
        return ""


class Crowded(NotForThisNode):
    """A limit is reached, and the request does not name this node: silence, but counted."""


def refusal(named: bool, reason: str) -> Exception:
    """What to raise about a request that is not run: an answer only if it names this node."""
    if named:
        return Rejected(reason)
    return NotForThisNode() if reason.startswith("unknown task") else Crowded(reason)


def _arguments(request: Request, task: Task) -> dict[str, Any]:
    """`data` as a mapping; without `extra_args` where the task's schema does not name it.

    Whoever types a task's arguments has said all it takes. The words that every task
    takes otherwise would be a way around it, also where the schema is silent.
    """
    arguments = request.arguments()
    if task.arguments is None or task.arguments.names(EXTRA_ARGS):
        return arguments
    return {key: value for key, value in arguments.items() if key != EXTRA_ARGS}


def _wishes(request: Request, task: Task) -> tuple[Wishes, str]:
    """What the options ask for, and what is wrong with them; empty if nothing."""
    options, timeout = request.options, task.timeout
    wish, fault = _seconds(options, "timeout")
    if wish is not None:
        timeout = wish if timeout is None else min(wish, timeout)
    ttl, wrong = _seconds(options, "ttl")
    fault = fault or wrong
    if ttl is not None and not _is_number(request.timestamp, none=True):
        fault = fault or "timestamp: expected unix seconds, from which options.ttl counts"
    for name in ("stream", "result"):
        if not isinstance(options.get(name), bool | None):
            found = f"a {type(options[name]).__name__}"
            fault = fault or f"options.{name}: found {found}; expected true or false"
    stream, result = options.get("stream") is True, options.get("result") is True
    return Wishes(timeout, stream, result, ttl), fault


def _seconds(options: Mapping[str, Any], name: str) -> tuple[float | None, str]:
    """An option that is a duration, or what is wrong with it."""
    wish = options.get(name)
    if wish is None or (_is_number(wish) and 0 < wish < 1e9):
        return wish, ""
    found = f"{wish:g}" if isinstance(wish, int | float) else f"a {type(wish).__name__}"
    return None, f"options.{name}: found {found}; expected seconds, more than 0"


def _is_number(value: Any, none: bool = False) -> bool:
    if value is None:
        return none
    return isinstance(value, int | float) and not isinstance(value, bool)
