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
import os
import socket
import uuid
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Any, Protocol, Self, TypeVar

from .backends.local_link import LocalLink
from .backends.redis_feedback import FeedbackReader, Lost
from .backends.redis_keys import tag_of
from .backends.redis_link import RedisLink
from .client_answers import ACCEPT_TIMEOUT, answers
from .client_nodes import Kept, answered, present
from .client_result import ClientError, FeedbackLost, NodeRun, Outcome, Posted, Result
from .destination import Destination
from .errors import BackendError
from .feedback import FEEDBACK_KEYS
from .matching import Match, match_record
from .messages import encode
from .presence import NodeRecord

__all__ = ["AsyncClient", "Client", "ClientError", "FeedbackLost", "Match", "NodeRecord",
           "NodeRun", "Outcome", "Posted", "Result"]  # fmt: skip

CONTROL_CHANNEL = "ngcp-task-agent-redis"
CONNECT_TIMEOUT = 5.0  # seconds to connect, subscribe and publish
TIMEOUT = 10.0  # seconds for everything


T = TypeVar("T")
OnResponse = Callable[[dict[str, Any]], None]


class Link(Protocol):
    """How messages travel: one connection to the bus or to an agent."""

    async def open(self) -> None: ...
    async def subscribe(self, channel: str) -> None: ...
    async def publish(self, channel: str, payload: bytes) -> int | None: ...
    async def append(self, stream: str, payload: bytes) -> None: ...
    async def time(self) -> float: ...
    async def clustered(self) -> bool: ...
    async def present(self) -> Sequence[Kept]: ...
    async def last(self, stream: str) -> str: ...
    def follow(self, stream: str, cursor: str) -> FeedbackReader: ...
    async def receive(self) -> bytes: ...
    async def unsubscribe(self, channel: str) -> None: ...
    async def close(self) -> None: ...


class AsyncClient:
    """Sends one request at a time.

    Args:
        link: The way to the agents; see `redis` and `local`.
        src: This host's name, told to the agents.
        channel: The control channel the tasks listen on.
        control_stream: The stream to which requests are posted instead, if any.
    """

    def __init__(
        self,
        link: Link,
        *,
        src: str = "",
        channel: str = CONTROL_CHANNEL,
        control_stream: str = "",
    ) -> None:
        self._link = link
        self._src = src or socket.gethostname()
        self._channel = channel
        self._control_stream = control_stream
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
        timeout: float = TIMEOUT,
        on_response: OnResponse | None = None,
        ref: str = "",
        **request: Any,
    ) -> Result:
        """Send one request and wait for what comes back.

        Args:
            task: Name of the task.
            timeout: Seconds for everything. It ends sooner once all who accepted
                have ended and nobody else is to be expected.
            on_response: Called with each response as it arrives.
            ref: The request's uuid; by default a new one.
            request: As for `stream`.

        Returns:
            Whatever came; see `Result.outcome`.

        Raises:
            ClientError: The bus is not reached, or the connection broke.
            MessageError: *data* has no form in JSON.
        """
        result = Result(ref or str(uuid.uuid4()))
        async for response in self.stream(task, timeout=timeout, result=result, **request):
            if on_response is not None:
                on_response(response)
        return result

    async def stream(
        self,
        task: str,
        *,
        timeout: float = TIMEOUT,
        result: Result | None = None,
        feedback_stream: bool | str = False,
        control_stream: str | None = None,
        pool: bool = False,
        **request: Any,
    ) -> AsyncIterator[dict[str, Any]]:
        """Like `send`, and yields each response as it arrives.

        Args:
            result: Filled as the responses come.
            feedback_stream: Whether the answers are kept and read from a stream: True
                for a new one, or its key.
            control_stream: Where the request is posted; by default the client's.
            pool: Whether one member of a pool runs it; then the first end is the end.
            request: ``dst`` (which nodes, for example ``"*|state=active;role=proxy"``),
                ``data`` (the task's arguments: a mapping, a string holding JSON, or
                None), ``options`` (further ones, such as ``{"timeout": 3}``; with
                ``{"stream": True}`` live output comes as responses with status
                progress) and ``ttl`` (seconds by the bus's clock within which it has to
                be started).
        """
        result = result if result is not None else Result(str(uuid.uuid4()))
        result.pool = pool
        durable = self._control_stream if control_stream is None else control_stream
        if feedback_stream:
            posted = await self.post(
                task, ref=result.uuid, feedback_stream=feedback_stream, control_stream=durable,
                pool=pool, result=result, **request,
            )  # fmt: skip
            async for _, response in self._read(
                posted.feedback_stream, posted.cursor, result, timeout, lasting=bool(durable)
            ):
                yield response
            return
        channel = f"ngcp-task-{os.getpid()}-{uuid.uuid4()}"
        async with self._bus(min(timeout, CONNECT_TIMEOUT)):
            await self._link.subscribe(channel)
            payload = await self._payload(
                task, result.uuid, {"feedback_channel": channel}, **request
            )
            await self._hand_over(payload, durable, result)
        async with self._bus():
            async for _, response in answers(self._hear, result, timeout, bool(durable)):
                yield response
            await self._link.unsubscribe(channel)

    async def post(
        self,
        task: str,
        *,
        ref: str = "",
        feedback_stream: bool | str = True,
        control_stream: str | None = None,
        pool: bool = False,
        result: Result | None = None,
        **request: Any,
    ) -> Posted:
        """Send one request and do not wait; the arguments are those of `stream`.

        Returns:
            What `collect` needs, here or on another host.
        """
        ref = ref or str(uuid.uuid4())
        durable = self._control_stream if control_stream is None else control_stream
        cursor = "0"
        async with self._bus(CONNECT_TIMEOUT):
            key = feedback_stream if isinstance(feedback_stream, str) else ""
            if key:
                cursor = await self._link.last(key)
            elif feedback_stream:
                key = await self._new_key(durable)
            options = {"feedback_stream": key} if key else {}
            payload = await self._payload(task, ref, options, **request)
            await self._hand_over(payload, durable, result or Result(ref))
        return Posted(ref, key, cursor, pool)

    async def follow(
        self, feedback_stream: str, cursor: str = "0", ref: str = "", timeout: float | None = None
    ) -> AsyncIterator[tuple[str, dict[str, Any]]]:
        """Read what is kept, and what is still to come.

        Args:
            feedback_stream: The stream's key.
            cursor: Where the last reader got to; "0" for the beginning.
            ref: Only responses to this request; empty for all.
            timeout: Seconds; None for ever.

        Yields:
            The cursor to go on from, and a response; each once, also where an agent has
            had to append it twice.

        Raises:
            FeedbackLost: What followed *cursor* has been trimmed, or has expired.
            ClientError: The bus refuses.
        """
        result = Result(ref)
        async for pair in self._read(feedback_stream, cursor, result, timeout, endless=True):
            yield pair

    async def collect(
        self,
        posted: Posted | str,
        ref: str = "",
        cursor: str = "0",
        timeout: float = TIMEOUT,
        *,
        pool: bool = False,
        on_response: OnResponse | None = None,
    ) -> Result:
        """Wait for the answers to a request that was posted, by whomever.

        Args:
            posted: What `post` has returned, or a feedback stream's key; then *ref*,
                *cursor* and *pool* say the rest.
            ref: The request's uuid; empty for the first one that is answered there.
            timeout: Seconds.
            on_response: Called with each response.

        Returns:
            What came after the cursor.

        Raises:
            FeedbackLost: Part of the answers is gone.
            ClientError: The bus refuses.
        """
        if not isinstance(posted, Posted):
            posted = Posted(ref, posted, cursor, pool)
        result = Result(posted.uuid, pool=posted.pool)
        async for _, response in self._read(
            posted.feedback_stream, posted.cursor, result, timeout, lasting=True
        ):
            if on_response is not None:
                on_response(response)
        return result

    async def nodes(self, dst: str = "*", task: str = "") -> list[NodeRecord]:
        """The nodes that *dst* selects, as they tell it themselves (``presence: yes``).

        Args:
            dst: Which nodes. Facts that are stale, or that a record had no room for,
                select nothing; see `match`.
            task: Only nodes that have this task: the others keep silent.

        Returns:
            By name, then by instance, with names, facts, tasks and load as they were when
            each node last wrote its record: seconds ago, half a minute at the most.

        Raises:
            MessageError: *dst* is malformed.
            ClientError: The bus is not reached, refuses, or keeps nothing of the kind.
        """
        destination = Destination.parse(dst)
        records = await self._present()
        return [one for one in records if match_record(destination, one, self._src, task).selected]

    async def match(
        self, dst: str, *, task: str = "", ask: bool = False, timeout: float = ACCEPT_TIMEOUT
    ) -> list[Match]:
        """Who would take a request with this *dst*, and why the others would not.

        Args:
            task: What it is to run; empty for whatever it is.
            ask: Whether the nodes are asked, as they are at this moment; else their
                records are.
            timeout: Seconds for all nodes to answer, where they are asked.

        Returns:
            By name, then by instance; of the nodes that were asked those that have answered.

        Raises:
            MessageError, ClientError: As for `nodes`.
        """
        destination = Destination.parse(dst)
        if ask:
            result = await self.send(
                "agent.match", data={"dst": dst, "task": task}, timeout=timeout
            )
            return answered(result)
        records = await self._present()
        return [match_record(destination, one, self._src, task) for one in records]

    async def _present(self) -> list[NodeRecord]:
        async with self._bus(CONNECT_TIMEOUT):
            return present(await self._link.present())

    @asynccontextmanager
    async def _bus(self, seconds: float | None = None) -> AsyncIterator[None]:
        """The link, open; its errors become the client's."""
        try:
            async with asyncio.timeout(seconds):
                if not self._open:
                    await self._link.open()
                    self._open = True
                yield
        except Lost as exc:
            raise FeedbackLost(str(exc)) from exc
        except BackendError as exc:
            await self.close()
            raise ClientError(str(exc)) from exc
        except TimeoutError as exc:
            await self.close()
            raise ClientError("the bus does not answer") from exc

    async def _payload(
        self,
        task: str,
        ref: str,
        feedback: Mapping[str, str],
        *,
        dst: str = "*",
        data: Any = None,
        options: Mapping[str, Any] | None = None,
        ttl: float | None = None,
    ) -> bytes:
        fields = {
            "uuid": ref,
            "task": task,
            "src": self._src,
            "dst": dst,
            "options": {**(options or {}), **feedback},
            "data": data,
        }
        if ttl is not None:
            fields["timestamp"] = await self._link.time()
            fields["options"]["ttl"] = ttl
        return encode(fields)

    async def _hand_over(self, payload: bytes, control_stream: str, result: Result) -> None:
        if control_stream:
            await self._link.append(control_stream, payload)
        else:
            result.receivers = await self._link.publish(self._channel, payload)

    async def _new_key(self, control_stream: str) -> str:
        # In a cluster the response is kept in one step with the request's end: on one server.
        if control_stream and await self._link.clustered():
            return f"{FEEDBACK_KEYS}{{{tag_of(control_stream)}}}:{uuid.uuid4()}"
        return f"{FEEDBACK_KEYS}{uuid.uuid4()}"

    async def _hear(self, seconds: float) -> tuple[str, bytes] | None:
        try:
            async with asyncio.timeout(seconds):
                return "", await self._link.receive()
        except TimeoutError:
            return None

    async def _read(
        self,
        stream: str,
        cursor: str,
        result: Result,
        timeout: float | None,
        *,
        lasting: bool = False,
        endless: bool = False,
    ) -> AsyncIterator[tuple[str, dict[str, Any]]]:
        async with self._bus():
            reader = self._link.follow(stream, cursor)
            try:
                async for pair in answers(reader.next, result, timeout, lasting, endless):
                    yield pair
            finally:
                await reader.close()


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

    def send(self, task: str, **arguments: Any) -> Result:
        """See `AsyncClient.send`."""
        return self._run(self._client.send(task, **arguments))

    def post(self, task: str, **arguments: Any) -> Posted:
        """See `AsyncClient.post`."""
        return self._run(self._client.post(task, **arguments))

    def collect(self, posted: Posted | str, **arguments: Any) -> Result:
        """See `AsyncClient.collect`."""
        return self._run(self._client.collect(posted, **arguments))

    def nodes(self, dst: str = "*", task: str = "") -> list[NodeRecord]:
        """See `AsyncClient.nodes`."""
        return self._run(self._client.nodes(dst, task))

    def match(self, dst: str, **arguments: Any) -> list[Match]:
        """See `AsyncClient.match`."""
        return self._run(self._client.match(dst, **arguments))

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        return self._runner.run(work)
