"""
Sends requests and collects the answers: the library of the `ngcp-task` command.

    async with AsyncClient.redis("redis://localhost") as client:
        result = await client.send("ping", dst="*|state=active")
        print(result.outcome, [run.data for run in result.runs])

`Client` is the same for code that is not asynchronous. A client listens before it
asks, knows which nodes have accepted and which have ended, and puts pieces together.
"""

from __future__ import annotations

import asyncio
import math
import os
import socket
import uuid
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import TracebackType
from typing import Any, Protocol, Self, TypeVar

from .backends.local_link import LocalLink
from .backends.redis_link import RedisLink
from .errors import BackendError, MessageError, TaskAgentError
from .messages import decode, decode_response, encode

CONTROL_CHANNEL = "ngcp-task-agent-redis"
CONNECT_TIMEOUT = 5.0  # seconds to connect, subscribe and publish
ACCEPT_TIMEOUT = 2.0  # seconds for the first node to accept
SETTLE = 0.5  # seconds after the request in which further nodes are expected to accept
TIMEOUT = 10.0  # seconds for everything
_ENDED = ("done", "error", "rejected")

T = TypeVar("T")


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
        return int(response.get("chunk", 1)) == len(self._pieces) + 1

    def add(self, response: dict[str, Any]) -> None:
        """Take the next message."""
        if response["status"] == "progress":
            return
        self.responses.append(response)
        self.result = response.get("result", self.result)
        status, chunks = response["status"], response.get("chunks", 1)
        if status in _ENDED and chunks > 1:
            self._pieces.append(response["data"])
            if len(self._pieces) < chunks:
                return
            whole = "".join(self._pieces)
            self.data = decode(whole) if response.get("encoding") == "json" else whole
        elif status in _ENDED:
            self.data = response.get("data", "")
        self.status = status
        self.reason = response.get("reason", "")


@dataclass
class Result:
    """All that came back.

    Attributes:
        uuid: The request's.
        receivers: How many agents the server handed the request to, if it tells.
        runs: One for each node that said something, in that order.
        unreadable: Messages on the feedback channel that were no responses.
    """

    uuid: str
    receivers: int | None = None
    runs: list[NodeRun] = field(default_factory=list)
    unreadable: int = 0

    @property
    def outcome(self) -> Outcome:
        """The whole in one word."""
        states = {run.status for run in self.runs}
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
        return bool(self.runs) and all(run.ended for run in self.runs)

    @property
    def complete(self) -> bool:
        """Whether everybody who got the request has ended: nobody else can come."""
        return self.receivers is not None and self.ended and len(self.runs) >= self.receivers

    def add(self, response: dict[str, Any]) -> NodeRun:
        """File a response under the run it belongs to."""
        src = str(response.get("src", ""))
        if response["status"] != "accepted":
            for run in self.runs:
                if run.src == src and run.expects(response):
                    run.add(response)
                    return run
        run = NodeRun(src, "accepted")
        run.add(response)
        self.runs.append(run)
        return run


class Link(Protocol):
    """How messages travel: one connection to the bus or to an agent."""

    async def open(self) -> None: ...
    async def subscribe(self, channel: str) -> None: ...
    async def publish(self, channel: str, payload: bytes) -> int | None: ...
    async def receive(self) -> bytes: ...
    async def unsubscribe(self, channel: str) -> None: ...
    async def close(self) -> None: ...


class AsyncClient:
    """Sends one request at a time.

    Args:
        link: The way to the agents; see `redis` and `local`.
        src: This host's name, told to the agents.
        channel: The control channel the tasks listen on.
    """

    def __init__(self, link: Link, *, src: str = "", channel: str = CONTROL_CHANNEL) -> None:
        self._link = link
        self._src = src or socket.gethostname()
        self._channel = channel
        self._open = False

    @classmethod
    def redis(
        cls, server: str | Mapping[str, Any] = "redis://localhost:6379", **kwargs: Any
    ) -> Self:
        """A client that reaches every agent on a Redis server.

        Args:
            server: ``redis://[USER:PASSWORD@]HOST[:PORT]``, ``rediss://…`` (TLS),
                ``unix://PATH``, or a mapping with the keys of ``backends/redis.yml``.
            kwargs: As for the class.

        Raises:
            ClientError: *server* makes no sense.
        """
        try:
            return cls(RedisLink({"url": server} if isinstance(server, str) else server), **kwargs)
        except BackendError as exc:
            raise ClientError(str(exc)) from exc

    @classmethod
    def local(cls, path: str = "/run/ngcp-task-agent/agent.sock", **kwargs: Any) -> Self:
        """A client that reaches the agent on this host by its UNIX socket."""
        return cls(LocalLink(path), **kwargs)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Disconnect."""
        await self._link.close()
        self._open = False

    async def send(
        self,
        task: str,
        *,
        dst: str = "*",
        data: Any = None,
        options: Mapping[str, Any] | None = None,
        timeout: float = TIMEOUT,
        on_response: Callable[[dict[str, Any]], None] | None = None,
        ref: str = "",
    ) -> Result:
        """Send one request and wait for what comes back.

        Args:
            task: Name of the task.
            dst: Which nodes, for example ``"*|state=active;role=proxy"``.
            data: The task's arguments: a mapping, a string holding JSON, or None.
            options: Further options of the request, such as ``{"timeout": 3}``; with
                ``{"stream": True}`` live output comes as responses with status progress.
            timeout: Seconds for everything. It ends sooner once all who accepted
                have ended and nobody else is to be expected.
            on_response: Called with each response as it arrives.
            ref: The request's uuid; by default a new one.

        Returns:
            Whatever came; see `Result.outcome`.

        Raises:
            ClientError: The bus is not reached, or the connection broke.
            MessageError: *data* has no form in JSON.
        """
        result = Result(ref or str(uuid.uuid4()))
        async for response in self.stream(
            task, dst=dst, data=data, options=options, timeout=timeout, result=result
        ):
            if on_response is not None:
                on_response(response)
        return result

    async def stream(
        self,
        task: str,
        *,
        dst: str = "*",
        data: Any = None,
        options: Mapping[str, Any] | None = None,
        timeout: float = TIMEOUT,
        result: Result | None = None,
    ) -> AsyncIterator[dict[str, Any]]:
        """Like `send`, and yields each response as it arrives.

        Args:
            result: Filled as the responses come.
        """
        result = result if result is not None else Result(str(uuid.uuid4()))
        channel = f"ngcp-task-{os.getpid()}-{uuid.uuid4()}"
        payload = encode(
            {
                "uuid": result.uuid,
                "task": task,
                "src": self._src,
                "dst": dst,
                "options": {**(options or {}), "feedback_channel": channel},
                "data": data,
            }
        )
        try:
            async with asyncio.timeout(min(timeout, CONNECT_TIMEOUT)):
                if not self._open:
                    await self._link.open()
                    self._open = True
                await self._link.subscribe(channel)
                result.receivers = await self._link.publish(self._channel, payload)
            async for response in self._collect(result, timeout):
                yield response
            await self._link.unsubscribe(channel)
        except BackendError as exc:
            await self.close()
            raise ClientError(str(exc)) from exc
        except TimeoutError as exc:
            await self.close()
            raise ClientError("the bus does not answer") from exc

    async def _collect(self, result: Result, timeout: float) -> AsyncIterator[dict[str, Any]]:
        now = asyncio.get_running_loop().time
        began = now()
        while not result.complete:
            patience = _patience(result, timeout)
            try:
                async with asyncio.timeout(began + patience - now()):
                    payload = await self._link.receive()
            except TimeoutError:
                if _patience(result, timeout) <= now() - began:
                    return
                continue
            try:
                response = decode_response(payload)
            except MessageError:
                result.unreadable += 1
                continue
            if response["ref"] == result.uuid:
                result.add(response)
                yield response


def _patience(result: Result, timeout: float) -> float:
    """Seconds after the request until nothing more is waited for, as things stand."""
    if not result.runs:
        return min(timeout, ACCEPT_TIMEOUT)
    return min(timeout, SETTLE if result.ended else math.inf)


class Client:
    """`AsyncClient` for code that is not asynchronous; the same arguments.

    Use it from one thread, and not from inside an event loop.
    """

    def __init__(self, client: AsyncClient) -> None:
        self._client = client
        self._runner = asyncio.Runner()

    @classmethod
    def redis(
        cls, server: str | Mapping[str, Any] = "redis://localhost:6379", **kwargs: Any
    ) -> Self:
        """See `AsyncClient.redis`."""
        return cls(AsyncClient.redis(server, **kwargs))

    @classmethod
    def local(cls, path: str = "/run/ngcp-task-agent/agent.sock", **kwargs: Any) -> Self:
        """See `AsyncClient.local`."""
        return cls(AsyncClient.local(path, **kwargs))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Disconnect."""
        self._run(self._client.close())
        self._runner.close()

    def send(
        self,
        task: str,
        *,
        dst: str = "*",
        data: Any = None,
        options: Mapping[str, Any] | None = None,
        timeout: float = TIMEOUT,
        on_response: Callable[[dict[str, Any]], None] | None = None,
        ref: str = "",
    ) -> Result:
        """See `AsyncClient.send`."""
        return self._run(
            self._client.send(
                task,
                dst=dst,
                data=data,
                options=options,
                timeout=timeout,
                on_response=on_response,
                ref=ref,
            )
        )

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        return self._runner.run(work)
