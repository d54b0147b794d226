"""
The wire: bytes to `Request`, `Response` to bytes. Nothing else knows JSON.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, NamedTuple

import orjson

from .destination import Destination
from .errors import MessageError

MAX_REQUEST = 1024 * 1024  # bytes; larger requests are refused unread


class Status(StrEnum):
    """What a response says about its request."""

    ACCEPTED = "accepted"
    PROGRESS = "progress"
    REJECTED = "rejected"
    DONE = "done"
    ERROR = "error"


class Encoded(NamedTuple):
    """A value as its JSON text, from somebody who has encoded it already.

    Attributes:
        text: Compact UTF-8; whether it is JSON has not been checked.
    """

    text: bytes


class Request(NamedTuple):
    """A client's wish, checked field by field.

    Attributes:
        uuid: The client's name for it, any non-empty text; echoed as `ref`.
        task: Name of the task to run.
        src: The client's host name; empty if it did not say.
        dst: Which nodes it is for.
        options: Whatever else the client sent; unknown keys are no error.
        data: As it came; see `arguments`.
        timestamp: When it was made, as the client says; anything may stand there.
    """

    uuid: str
    task: str
    src: str
    dst: Destination
    options: Mapping[str, Any]
    data: Any = None
    timestamp: Any = None

    @property
    def feedback_channel(self) -> str:
        """Where answers go; empty if the client did not say."""
        channel = self.options.get("feedback_channel")
        return channel if isinstance(channel, str) else ""

    @property
    def feedback_stream(self) -> str:
        """The stream where answers are kept as well; empty if the client did not say."""
        stream = self.options.get("feedback_stream")
        return stream if isinstance(stream, str) else ""

    def plain(self) -> Any:
        """`data`, and what it holds if it is a string that holds JSON."""
        if isinstance(self.data, str):
            try:
                return orjson.loads(self.data)
            except orjson.JSONDecodeError:
                pass
        return self.data

    def arguments(self) -> dict[str, Any]:
        """`data` as a mapping: an object, or a string that holds one; else empty.

        >>> Request("u", "t", "s", Destination.parse("*"), {}, '{"user": "anna"}').arguments()
        {'user': 'anna'}
        """
        data = self.plain()
        return data if isinstance(data, dict) else {}


class Response(NamedTuple):
    """One message back; its fields are those of the wire.

    `timestamp` is in unix seconds; `encoding` is left out where it is empty; `extra` are
    fields that the client has asked for.
    """

    uuid: str
    ref: str
    task: str
    src: str
    dst: str
    timestamp: float
    status: Status
    chunk: int = 1
    chunks: int = 1
    reason: str = ""
    data: Any = ""
    encoding: str = ""
    extra: Mapping[str, Any] | None = None


def decode_request(payload: bytes, limit: int = MAX_REQUEST) -> Request:
    """Read one request.

    Args:
        payload: UTF-8 JSON object.
        limit: Most bytes that are looked at.

    Raises:
        MessageError: Too large, not JSON, not an object, or a field is missing
            or of the wrong type. The text names the field.
    """
    if len(payload) > limit:
        raise MessageError(f"request of {len(payload)} bytes; at most {limit} are read")
    try:
        fields = orjson.loads(payload)
    except orjson.JSONDecodeError as exc:
        raise MessageError(f"request is not JSON: {exc}") from None
    if type(fields) is not dict:
        raise MessageError(f"request is {_kind(fields)}; expected a JSON object")
    options = fields.get("options")
    if options is None:
        options = {}
    elif type(options) is not dict:
        raise MessageError(f"options: found {_kind(options)}; expected an object")
    return Request(
        _text(fields, "uuid"),
        _text(fields, "task"),
        _text(fields, "src", required=False),
        Destination.parse(_text(fields, "dst")),
        options,
        fields.get("data"),
        fields.get("timestamp"),
    )


def decode_response(payload: bytes) -> dict[str, Any]:
    """Read one response, as a client does.

    Returns:
        The fields as sent; `ref`, `status`, `src`, `reason`, `data`, `chunk` and
        `chunks` are there and of the right type.

    Raises:
        MessageError: It is no response.
    """
    try:
        fields = orjson.loads(payload)
    except orjson.JSONDecodeError as exc:
        raise MessageError(f"response is not JSON: {exc}") from None
    if type(fields) is not dict:
        raise MessageError(f"response is {_kind(fields)}; expected a JSON object")
    fields = {"src": "", "reason": "", "data": "", "chunk": 1, "chunks": 1, **fields}
    for name in ("ref", "status", "src", "reason"):
        if type(fields.get(name)) is not str:
            raise MessageError(
                f"response: {name}: found {_kind(fields.get(name))}; expected a string"
            )
    for name in ("chunk", "chunks"):
        if type(fields[name]) is not int or fields[name] < 1:
            raise MessageError(f"response: {name}: expected a whole number from 1")
    if fields["chunks"] > 1 and type(fields["data"]) is not str:
        raise MessageError("response: data: expected a string in one of several")
    return fields


def encode(value: Any) -> bytes:
    """Write any value as UTF-8 JSON without spaces; NaN and infinity become null.

    Raises:
        MessageError: *value* holds something JSON has no form for.
    """
    try:
        return orjson.dumps(value)
    except TypeError as exc:
        raise MessageError(f"not JSON: {exc}") from None


def decode(text: str | bytes) -> Any:
    """Read any JSON value.

    Raises:
        MessageError: *text* is not JSON.
    """
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError as exc:
        raise MessageError(f"not JSON: {exc}") from None


def encode_response(response: Response) -> bytes:
    """Write one response.

    Raises:
        MessageError: `data` holds something JSON has no form for.
    """
    fields = response._asdict()
    fields.update(fields.pop("extra") or ())
    fields["datetime"] = datetime.fromtimestamp(response.timestamp, UTC).isoformat()
    if not response.encoding:
        del fields["encoding"]
    return encode(fields)


def _text(fields: Mapping[str, Any], name: str, required: bool = True) -> str:
    value = fields.get(name)
    if type(value) is str and (value or not required):
        return value
    if value is None and not required:
        return ""
    raise MessageError(f"{name}: found {_kind(value)}; expected a non-empty string")


def _kind(value: Any) -> str:
    names = {type(None): "nothing", bool: "true or false", str: "a string", list: "an array"}
    return names.get(type(value), "an object" if isinstance(value, dict) else "a number")
