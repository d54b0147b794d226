"""
Dead letters: requests that have failed for good, kept for people to decide about.

Keys: `dead_key` of the control stream, a stream whose entries have the fields
``request``, ``reason``, ``attempts``, ``group``, ``node``, ``stream``, ``entry`` and
``failed`` (unix seconds); the control stream itself for what is replayed.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from contextlib import suppress
from types import TracebackType
from typing import Any, NamedTuple, Self

from redis.asyncio.connection import AbstractConnection
from redis.exceptions import RedisError

from ..errors import BackendError, MessageError
from ..messages import decode, encode
from ..options import Options
from .redis_keys import dead_key
from .redis_server import RedisServer

PAGE = 100  # entries read at once
NODE_GROUP = "node:"  # so begins the group of a node that decides by dst
# Whoever takes the letter away posts the request: two who replay it at once post it once.
REPLAY = """
if redis.call('XDEL', KEYS[1], ARGV[1]) == 0 then return false end
return redis.call('XADD', KEYS[2], '*', 'request', ARGV[2])
"""


class DeadLetter(NamedTuple):
    """One of them.

    Attributes:
        id: The entry's.
        request: The request's JSON, or whatever it was.
        fields: The other fields.
    """

    id: str
    request: bytes
    fields: Mapping[str, str]

    @property
    def about(self) -> dict[str, Any]:
        """The request's fields; empty where it is no request."""
        try:
            fields = decode(self.request)
        except MessageError:
            return {}
        return fields if isinstance(fields, dict) else {}

    @property
    def failed(self) -> float:
        """When it has failed for good, in unix seconds."""
        try:
            return float(self.fields["failed"])
        except (KeyError, ValueError):
            return int(self.id.partition("-")[0]) / 1000


class DeadLetters:
    """Those of one control stream.

    Args:
        fields: The keys of ``backends/redis_stream.yml`` or ``redis.yml``.
        control_stream: Its key.

    Raises:
        BackendError: A key is wrong, or later: Redis is not reached, or refuses.
    """

    def __init__(self, fields: Mapping[str, Any], control_stream: str) -> None:
        options = Options({"client_name": "ngcp-task", **fields}, "redis")
        self._server = RedisServer(options)
        if options.problems:
            raise BackendError("; ".join(map(str, options.problems)))
        self._stream = control_stream
        self._key = dead_key(control_stream)
        self._connection: AbstractConnection | None = None

    async def __aenter__(self) -> Self:
        try:
            self._connection = await self._server.connect(self._stream)
        except (RedisError, OSError, TimeoutError) as exc:
            raise self._error(exc) from exc
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._connection is not None:
            with suppress(RedisError, OSError, TimeoutError):
                await self._connection.disconnect()

    async def all(self) -> list[DeadLetter]:
        """Every letter, the oldest first."""
        letters: list[DeadLetter] = []
        start = "-"
        while found := await self._ask("XRANGE", self._key, start, "+", "COUNT", PAGE):
            letters += map(_letter, found)
            start = f"({letters[-1].id}"
        return letters

    async def get(self, entry: str) -> DeadLetter | None:
        """The letter with this id, if there is one."""
        found = await self._ask("XRANGE", self._key, entry, entry)
        return _letter(found[0]) if found else None

    async def replay(self, letter: DeadLetter) -> str:
        """Post the request again, and take the letter away.

        Returns:
            The request's new uuid: one that has ended is not run again. Empty where
            somebody else has been faster. What has failed on a node that decides for
            itself is posted for that node only: the others have done it.

        Raises:
            BackendError: It is no request.
        """
        if not letter.about:
            raise BackendError(f"{letter.id} holds no request; see show, and purge")
        fresh = {**letter.about, "uuid": str(uuid.uuid4())}
        if letter.fields.get("group", "").startswith(NODE_GROUP) and letter.fields.get("node"):
            fresh["dst"] = letter.fields["node"]
        for name in ("timestamp", "datetime"):  # its time begins again
            fresh.pop(name, None)
        posted = await self._ask(
            "EVAL", REPLAY, 2, self._key, self._stream, letter.id, encode(fresh)
        )
        return str(fresh["uuid"]) if posted else ""

    async def purge(self, letter: DeadLetter) -> bool:
        """Throw it away; whether it was still there."""
        return bool(await self._ask("XDEL", self._key, letter.id))

    async def _ask(self, *words: Any) -> Any:
        if self._connection is None:
            raise BackendError(f"redis {self._server}: not connected")
        try:
            await self._connection.send_command(*words, check_health=False)
            return await self._connection.read_response()
        except (RedisError, OSError) as exc:
            raise self._error(exc) from exc

    def _error(self, exc: Exception) -> BackendError:
        return BackendError(f"redis {self._server}: {' '.join(str(exc).split()) or 'timed out'}")


def _letter(entry: Any) -> DeadLetter:
    name, pairs = entry
    fields = dict(zip(pairs[::2], pairs[1::2], strict=False))
    request = fields.pop(b"request", b"")
    texts = {k.decode("utf-8", "replace"): v.decode("utf-8", "replace") for k, v in fields.items()}
    return DeadLetter(name.decode(), request, texts)
