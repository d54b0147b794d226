"""
The shapes a plug-in must have. Read this file first when adding one.

A plug-in imports from here and from the floors below (`processes`, `confinement`, `options`,
`messages`, `destination`, `errors`) and nothing else of this package; it is found
by name through `registry`. Its factory is called with `Options`: it reads what it
knows and notes mistakes there, when the file is loaded, so that a wrong file fails
`ngcp-task-agent check` and never a request.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, runtime_checkable

from .destination import Node
from .messages import encode
from .options import Options


class Delivery(NamedTuple):
    """One message from a backend.

    Attributes:
        payload: The bytes as they came.
        control_channel: Where they came in.
        local: Whether the sender is on this host, or the bus is: such a request
            reaches this node as ``local`` and ``localhost``.
        address: Where answers go; empty if the request has to say
            (`options.feedback_channel`).
        claim: What holds a durable request; None for a message that is forgotten
            once it is read.
        caller: Who has sent it, where the transport knows, such as ``uid 0, pid 17``.
    """

    payload: bytes
    control_channel: str
    local: bool = False
    address: str = ""
    claim: Claim | None = None
    caller: str = ""


class Claim(Protocol):
    """The hold on a durable request: while it lasts, nobody else runs it.

    The backend renews it. Each claim is given up once, by one of `settle`, `retry`,
    `release` and `drop`; these wait for the transport as long as it is away, and
    tell whether the claim was still held. If not, somebody else has taken the request
    over and nothing was sent or changed.

    Attributes:
        attempt: Which try this is, from 1; it grows with each, so that it can fence off
            the late effects of an earlier one.
        taken_over: Whether the one who held it before has gone without a word.
        pool: Name of the pool of which one member runs it; empty where every node
            decides by `dst`.
        posted: When it was posted, in unix seconds by the transport's clock.
        on_lost: Called once, by the backend, when somebody else has taken it over.
    """

    attempt: int
    taken_over: bool
    pool: str
    posted: float
    on_lost: Callable[[], None]

    async def settle(
        self, address: str, payload: bytes, stream: str = "", failure: str = ""
    ) -> bool:
        """Hand over the last response and acknowledge, in one step; see `Backend.deliver`.

        Args:
            failure: Why it has failed for good: it is also put among the dead letters.
        """

    async def retry(self, delay: float) -> bool:
        """This attempt has failed; the next one is due in *delay* seconds."""

    async def release(self, delay: float = 0.0) -> bool:
        """It was not started: it goes back, and this does not count as an attempt."""

    async def drop(self, failure: str = "") -> bool:
        """Acknowledge without a word: it is for others, or cannot be answered.

        Args:
            failure: Why it is no request: it is also put among the dead letters.
        """


class Host(Protocol):
    """What a backend may know of the daemon that it serves.

    Attributes:
        identity: Tells this agent from others, also of the same name: stays the same
            from start to start.
    """

    identity: str

    def node(self) -> Node:
        """Names and facts, as they are now."""

    def room(self, control_channel: str) -> int:
        """How many more requests from there could be started at once; 0 at a stop."""

    def record(self) -> bytes:
        """What this agent tells of itself at the moment, of at most 64 KiB; see `presence`."""


class Backend(Protocol):
    """Carries bytes in and out; knows nothing of requests.

    Attributes:
        on_change: Called when `state` has changed; set by the daemon.
        host: Whom it serves; set by the daemon before `open`.
        shared: Whether the responses to all addresses wait in one queue.

    Whose requests come without a claim may say so with ``forgets = True``; then `check`
    warns of tasks that want to be tried again. Who keeps the agent's record where clients
    find it (`Host.record`) has ``async def withdraw()``: the agent takes no more requests,
    and the record has to go. It takes a second at most, and raises nothing.
    """

    on_change: Callable[[], None]
    host: Host | None
    shared: bool

    def subscription(self, options: Options) -> str:
        """Read a task's ``backend_options``: the control channel it listens on."""

    async def open(self) -> None:
        """Claim what has to be claimed before the first `receive`.

        Raises:
            BackendError: It cannot be had; the daemon goes on without this backend.
        """

    def listen(self, channels: Iterable[str]) -> None:
        """Take requests from exactly these control channels from now on."""

    def receive(self) -> AsyncIterator[Delivery]:
        """Yield deliveries until `stop`; reconnects by itself, for ever."""

    def deliver(self, address: str, payload: bytes, stream: str = "") -> None:
        """Hand over one encoded response; never waits.

        Responses leave in this order on one connection. While the transport is
        away they wait in a bounded queue; what does not fit is dropped and counted.

        Args:
            address: Who hears it now; may be empty if there is a *stream*.
            payload: The response.
            stream: Where it is kept as well, for a client that comes later
                (`options.feedback_stream`). A transport that keeps nothing ignores it.
        """

    async def flush(self, address: str) -> None:
        """Wait until what was delivered to *address* has left, paced so that a
        reader of ordinary speed keeps up."""

    async def stop(self) -> None:
        """End `receive`; answers may still be delivered."""

    async def close(self) -> None:
        """Send what waits, for a bounded time, and disconnect."""

    async def now(self) -> float:
        """What time it is by the transport's clock, in unix seconds: everybody's the same.

        Raises:
            BackendError: The transport is away, and was never asked before.
        """

    def state(self) -> BackendState:
        """How the transport is, for status lines and the watchdog."""


class BackendState(NamedTuple):
    """How a backend is.

    Attributes:
        connected: Whether the other side is reached.
        sound: Whether the machinery works: connected and heard from, or trying
            to connect. False asks for a restart.
        text: One line for people.
        dropped: Responses lost since the start.
        connections: How often the other side was reached anew since the start.
        waiting: Responses that wait to be sent.
        waiting_bytes: Their size together.
        held: Durable requests held at the moment.
        buried: Durable requests put among the dead letters since the start.
    """

    connected: bool
    sound: bool
    text: str
    dropped: int = 0
    connections: int = 0
    waiting: int = 0
    waiting_bytes: int = 0
    held: int = 0
    buried: int = 0


@runtime_checkable
class Reaching(Protocol):
    """What a backend with another side may have beside the methods of `Backend`."""

    async def reach(self) -> None:
        """Ask the other side now, on the way by which requests come, and wait for its answer.

        The caller sets the time limit, and may be cut short.

        Raises:
            BackendError: It is not reached, or requests would not be heard: the text says why.
        """


@dataclass(frozen=True, slots=True)
class Job:
    """An accepted request, as a broker sees it.

    Attributes:
        task: Name of the task.
        uuid: The request's uuid; not necessarily a UUID, not necessarily unique.
        src: The client's host name, as it claims.
        data: The request's `data`, as it came.
        arguments: `data` as a mapping; whoever may publish chose every byte, within
            what the task's schema allows, if it has one.
        options: The request's `options`.
        deadline: When it is ended, in unix seconds; None for never.
        attempt: Which try this is, from 1; see `Claim.attempt`.
        local: Whether the request is local to this node; see `Node.is_local_to`.
    """

    task: str
    uuid: str
    src: str = ""
    data: Any = None
    arguments: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    deadline: float | None = None
    attempt: int = 1
    local: bool = False

    def text(self) -> str:
        """`data` as text: a string as it is, anything else as JSON, nothing as ""."""
        if self.data is None or isinstance(self.data, str):
            return self.data or ""
        return encode(self.data).decode()


class Output(Protocol):
    """Where a broker puts what it has to say; a job has one of text and result.

    Attributes:
        followed: Whether the client reads along (`options.stream`). Then writing waits
            where the client is slower than the broker.
        masks: Whether the task has anything to hide. Then nothing that was cut, or not
            written here first, may be quoted: it could hold half of it.
    """

    followed: bool
    masks: bool

    async def write(self, piece: bytes) -> None:
        """Add to the text of the answer: UTF-8, decoded with replacement."""

    async def write_error(self, piece: bytes) -> None:
        """Say something beside the answer, as programs do on stderr; its end is kept."""

    async def progress(self, piece: bytes) -> None:
        """Say something to a client that reads along; it is no part of the answer."""

    def cut(self, size: int) -> None:
        """Keep the first *size* bytes of the text only, at most 1 MiB."""

    def result(self, value: Any) -> None:
        """Set the answer to a value that JSON has a form for, or to `messages.Encoded`."""

    def runs_as(self, user: str, pid: int | None = None) -> None:
        """Tell who does the work, and in which process if it has one of its own."""

    def exited(
        self,
        code: int | None,
        *,
        cpu_seconds: float | None = None,
        peak_memory: int | None = None,
    ) -> None:
        """Tell how the process has ended.

        Args:
            code: Exit code, minus the number of the signal that ended it, or None.
            cpu_seconds: Processor time that it and its children have used.
            peak_memory: The most resident bytes it has had; None if nobody knows.
        """

    def hide(self, variables: Mapping[str, str]) -> None:
        """Tell the variables that the work is given, before anything is written.

        The values of those that the task's `mask` names never get out again: not in the
        answer, nor in a reason.
        """

    def masked(self, text: str) -> str:
        """*text* without what is to be hidden: for log lines."""


class Broker(Protocol):
    """Does the work of one task."""

    async def run(self, job: Job, output: Output) -> None:
        """Do *job*; returning means done.

        Cancellation means that the time is over or the agent stops: end all you
        have started and let `asyncio.CancelledError` through. The client may be
        answered before you are finished, but the place is yours until then.

        Raises:
            BrokerError: The work failed; the text is shown to the client.
        """

    async def close(self) -> None:
        """The task is gone or replaced; jobs that run may still end."""


class BrokerFactory(Protocol):
    """What a broker's name in the registry stands for."""

    def __call__(self, options: Options) -> Broker: ...


class Reading(NamedTuple):
    """What a fact source has found out.

    Attributes:
        facts: Key to all present values; a key left out is unknown.
        name: The node's name, if the source knows it.
    """

    facts: Mapping[str, frozenset[str]]
    name: str = ""


class FactSource(Protocol):
    """Finds out something about this host.

    Attributes:
        interval: Seconds between two readings; 0 for one that never changes.
        max_age: Seconds after which a reading is stale and matches nothing.
    """

    interval: float
    max_age: float

    async def read(self) -> Reading:
        """Look now.

        Raises:
            OSError, ValueError: Nothing can be said at the moment.
        """
