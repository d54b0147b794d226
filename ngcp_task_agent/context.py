"""
What a task's function may know of its job, and say while it runs.

The only room that functions of the administrator's import: a parameter called `context`
gets the `Context` of the job; `current` and `progress` are for code further down. It is
the same in the daemon's event loop and in a worker process, and imports little, because
each worker starts with it.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Awaitable, Generator, Mapping
from contextvars import ContextVar
from typing import Any, NamedTuple, Protocol

from .errors import MessageError
from .messages import encode

# The numbers of `logging`, which would cost a worker a third of its start time.
DEBUG, INFO, WARNING, ERROR, CRITICAL = 10, 20, 30, 40, 50


class Request(NamedTuple):
    """Who wants what. The client chose every byte of it, but for the task's name.

    Attributes:
        task: Name of the task.
        uuid: The client's name for the request; not necessarily unique.
        src: The client's host name, as it claims.
        data: The request's `data`, as it came.
        options: The request's `options`.
        attempt: Which try this is, from 1; with `uuid` it fences off the late effects
            of an earlier one.
    """

    task: str
    uuid: str
    src: str = ""
    data: Any = None
    options: Mapping[str, Any] = {}
    attempt: int = 1


class Link(Protocol):
    """The way from a context to the agent.

    Attributes:
        followed: Whether a client reads along.
        cancelled: Whether the job is to end.
    """

    followed: bool
    cancelled: bool

    def progress(self, piece: bytes) -> Awaitable[None]:
        """Show *piece* to the client."""

    def log(self, level: int, text: str) -> None:
        """Put *text* in the agent's log."""

    def attended(self) -> None:
        """Somebody looks at `cancelled`, and ends by himself."""


class Context:
    """One job, as its function sees it.

    Attributes:
        request: Who wants what.
        deadline: When the job is ended, in unix seconds; None for never.
        log: Writes to the agent's log, like a `logging.Logger`.
    """

    __slots__ = ("_link", "deadline", "log", "request")

    def __init__(self, request: Request, deadline: float | None, link: Link) -> None:
        self.request = request
        self.deadline = deadline
        self.log = Log(link)
        self._link = link

    @property
    def cancelled(self) -> bool:
        """Whether the job is to end: its time is over, or nobody wants it any more.

        A few seconds later its process is killed.
        """
        return self._link.cancelled

    def remaining(self) -> float | None:
        """Seconds until `deadline`, not less than 0; None for no end."""
        return None if self.deadline is None else max(0.0, self.deadline - time.time())

    def progress(self, piece: Any) -> Awaitable[None]:
        """Show *piece* to a client that reads along; without one it is dropped.

        Waits while the client is slower. In an `async def`, `await` what it returns, or
        pieces are dropped instead.

        Args:
            piece: Text or bytes as they are, any other value as its JSON and a line end.

        Raises:
            TypeError: JSON has no form for it.
        """
        return self._link.progress(as_bytes(piece)) if self._link.followed else NOTHING


class Log:
    """Logs a line for the agent, with the `%` arguments of `logging`."""

    __slots__ = ("_link",)

    def __init__(self, link: Link) -> None:
        self._link = link

    def log(self, level: int, message: object, *args: object) -> None:
        """Log at *level*, a number as in `logging`."""
        text = str(message)
        if args:
            try:
                text %= args[0] if len(args) == 1 and isinstance(args[0], Mapping) else args
            except (TypeError, ValueError, KeyError):
                text = f"{text} {args!r}"  # no reason to end a job
        self._link.log(level, text)

    def debug(self, message: object, *args: object) -> None:
        """For who looks for a mistake."""
        self.log(DEBUG, message, *args)

    def info(self, message: object, *args: object) -> None:
        """What is as it should be."""
        self.log(INFO, message, *args)

    def warning(self, message: object, *args: object) -> None:
        """What somebody should look at."""
        self.log(WARNING, message, *args)

    def error(self, message: object, *args: object) -> None:
        """What failed."""
        self.log(ERROR, message, *args)

    def critical(self, message: object, *args: object) -> None:
        """What should never be."""
        self.log(CRITICAL, message, *args)

    def exception(self, message: object, *args: object) -> None:
        """An error, with the traceback of the exception at hand."""
        self.error(message, *args)
        self._link.log(ERROR, traceback.format_exc())


def current() -> Context:
    """The context of the job that runs here.

    Raises:
        RuntimeError: None does.
    """
    context = _current.get() or _of_process
    if context is None:
        raise RuntimeError("no job runs here: current() is for functions the agent has called")
    context._link.attended()
    return context


def progress(piece: Any) -> Awaitable[None]:
    """`Context.progress` of the job that runs here; nothing where none does."""
    context = _current.get() or _of_process
    return NOTHING if context is None else context.progress(piece)


def enter(context: Context) -> None:
    """Make *context* that of the `asyncio` task which calls this; for the agent only."""
    _current.set(context)


def enter_process(context: Context | None) -> None:
    """Make *context* that of this process, all its threads; for the agent only."""
    global _of_process
    _of_process = context


def as_bytes(piece: Any) -> bytes:
    """What is sent for *piece*; see `Context.progress`.

    >>> as_bytes("half"), as_bytes({"done": 50})
    (b'half', b'{"done":50}\\n')
    """
    if isinstance(piece, str):
        return piece.encode("utf-8", "replace")
    if isinstance(piece, bytes | bytearray | memoryview):
        return bytes(piece)
    try:
        return encode(piece) + b"\n"
    except MessageError as exc:
        raise TypeError(f"the piece is {exc}") from exc


class _Nothing:
    """May be awaited, or not; who awaits it gives way to others."""

    def __await__(self) -> Generator[Any, None, None]:
        yield


NOTHING = _Nothing()
_current: ContextVar[Context | None] = ContextVar("ngcp_task_agent_context", default=None)
_of_process: Context | None = None  # a worker has one job, and its threads no context of their own
