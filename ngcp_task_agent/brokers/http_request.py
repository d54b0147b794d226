"""
What a task's HTTP request looks like, and what a client may choose of it.

Everything a client has sent is a value and no syntax: in the URL it is percent-encoded,
in JSON and forms it is escaped, and a header holds printable ASCII on one line.
Knows no HTTP library.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple
from urllib.parse import urlencode, urljoin

from ..errors import BrokerError, MessageError
from ..interfaces import Job
from ..messages import decode, encode
from ..options import Options, describe
from ..placeholders import Template, find
from .http_url import origin, pattern

MAX_HEADER = 8000  # characters of one value; what common servers take as well
MAX_CHOSEN = 32  # headers that one client may send along
MAX_BODY = 1024 * 1024  # bytes; no request on the bus is longer either

_TOKEN = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")  # RFC 9110, 5.6.2
_METHOD = re.compile(r"[A-Z][A-Z-]*")
_PRINTABLE = re.compile(r"[ -~]*")

# These say how the message travels: two opinions on that are how requests are smuggled.
_TRAVEL = frozenset(
    ("accept-encoding", "connection", "content-encoding", "content-length", "expect")
    + ("keep-alive", "proxy-authenticate", "proxy-authorization", "proxy-connection")
    + ("te", "trailer", "transfer-encoding", "upgrade")
)


class Call(NamedTuple):
    """One request, ready to be sent.

    Attributes:
        url: Absolute, percent-encoded, without fragment.
        headers: Names to values.
        body: None for none.
    """

    method: str
    url: str
    headers: Mapping[str, str]
    body: bytes | None

    def redirected(self, status: int, location: str) -> Call:
        """The request that a redirect asks for.

        To another scheme, host or port neither headers nor body go along: they are for
        the server that the task file names.

        Args:
            status: 301, 302, 303, 307 or 308.
            location: As the server wrote it.

        Raises:
            BrokerError: No good URL, or one that must not be followed.
        """
        try:
            url = urljoin(self.url, location).partition("#")[0]
            target, here = origin(url), origin(self.url)
        except ValueError:
            raise BrokerError(
                f"status {status}: redirected to {location[:200]!r}, no URL"
            ) from None
        if (here[0], target[0]) == ("https", "http"):
            raise BrokerError(f"status {status}: redirected from https to http, not followed")
        method, headers, body = self.method, self.headers, self.body
        # RFC 9110, 15.4: after a POST, 301 and 302 mean GET, too, as everybody does it.
        if (status == 303 and method != "HEAD") or (status in (301, 302) and method == "POST"):
            method, body = "GET", None
            headers = {k: v for k, v in headers.items() if k.lower() != "content-type"}
        if target != here:
            if body is not None:
                raise BrokerError(f"status {status}: redirected to another server with the body")
            headers = {}
        return Call(method, url, headers, body)


class Headers:
    """What is said beside the body: ``headers`` and ``allow_headers``."""

    def __init__(self, options: Options) -> None:
        self._own = {name: Template(text) for name, text in options.mapping("headers").items()}
        self._allowed: dict[str, re.Pattern[str] | None] | None = None
        if "allow_headers" in options:
            self._allowed = {
                name.lower(): pattern(options, f"allow_headers.{name}", text)
                for name, text in options.mapping("allow_headers").items()
            }
        for name, template in self._own.items():
            wrong = _wrong_name(name) if name.lower() != "host" else ""
            if not all(_PRINTABLE.fullmatch(text) for text in template.texts):
                wrong = "characters that are not printable ASCII"
            if wrong:
                options.problem(f"headers.{name}", wrong, "another header, on one line")
        for name in options.mapping("allow_headers"):
            if wrong := _wrong_name(name):
                options.problem(f"allow_headers.{name}", wrong, "a header that clients may choose")
        _no_twins(options, "headers", self._own)

    def fill(self, job: Job, content_type: str) -> dict[str, str]:
        """Names to values for *job*; a client's own come before the task's.

        Raises:
            BrokerError: A value is missing or no header's, or the task does not allow it.
        """
        found = {"user-agent": ("User-Agent", "ngcp-task-agent")}
        if content_type:
            found["content-type"] = ("Content-Type", content_type)
        for name, template in self._own.items():
            found[name.lower()] = (name, _value(f"headers.{name}", template.fill(job.arguments)))
        for name, value in self._chosen(job).items():
            found[name.lower()] = (name, value)
        # A body that grows when it is unpacked would make a mockery of max_output.
        return {**dict(found.values()), "Accept-Encoding": "identity"}

    def _chosen(self, job: Job) -> dict[str, str]:
        if self._allowed is None:
            return {}
        chosen = parse_headers(job.options.get("headers"))
        for name, value in chosen.items():
            allowed = self._allowed.get(name.lower())
            if allowed is None:
                raise BrokerError(f"options.headers: {name[:100]!r} is not allowed by the task")
            _value(f"options.headers: {name}", value)
            if not allowed.fullmatch(value):
                found = repr(value[:100])
                raise BrokerError(
                    f"options.headers: {name}: found {found}; expected what the task allows"
                )
        return chosen


class Body:
    """What is sent: ``body``, ``json`` or ``form``; nothing without any of them.

    Attributes:
        given: Whether there is one.
        content_type: Of that kind of body.
    """

    def __init__(self, options: Options) -> None:
        self._text = Template(options.text("body"))
        self._form = {Template(k): Template(v) for k, v in options.mapping("form").items()}
        options.mark("json")
        self._json = options.fields.get("json")
        kinds = {
            "body": "text/plain; charset=utf-8",
            "json": "application/json",
            "form": "application/x-www-form-urlencoded",
        }
        given = [kind for kind in kinds if kind in options]
        self._kind = given[0] if given else ""
        self.given = bool(given)
        self.content_type = kinds.get(self._kind, "")
        if len(given) > 1:
            options.problem(given[1], f"it beside {given[0]}", "one of the two")
        try:
            encode(self._json)
        except MessageError as exc:
            options.problem("json", str(exc), "what JSON has a form for")

    def fill(self, job: Job) -> bytes | None:
        """The body for *job*.

        Raises:
            BrokerError: A value is missing, or it gets too long.
        """
        if not self._kind:
            return None
        try:
            body = self._filled(job)
        except (MessageError, UnicodeError) as exc:
            raise BrokerError(f"the data cannot be passed on: {exc}") from exc
        if len(body) > MAX_BODY:
            raise BrokerError(f"the body would be {len(body)} bytes long; at most {MAX_BODY}")
        return body

    def _filled(self, job: Job) -> bytes:
        if self._kind == "body":
            return self._text.fill(job.arguments).encode()
        if self._kind == "json":
            return encode(_json(self._json, job))
        fill = job.arguments
        return urlencode([(k.fill(fill), v.fill(fill)) for k, v in self._form.items()]).encode()


def method(options: Options, default: str) -> str:
    """The option ``method``."""
    name = options.text("method", default)
    if not _METHOD.fullmatch(name) or name in ("CONNECT", "TRACE"):
        options.problem("method", describe(name), "GET, POST, PUT, DELETE or another in capitals")
    return name


def parse_headers(value: Any) -> dict[str, str]:
    r"""Read `options.headers`, in any of the forms that occur.

    Args:
        value: An object, a text that holds one with or without its braces, or lines
            of ``Name: value``.

    Raises:
        BrokerError: It is nothing of that.

    >>> parse_headers('"P-NGCP-HM-Invalidate-Rule-Set": 7')
    {'P-NGCP-HM-Invalidate-Rule-Set': '7'}
    >>> parse_headers("A: 1\r\nB: 2")
    {'A': '1', 'B': '2'}
    """
    if value is None or value == "":
        return {}
    fields = _fields_of(value) if isinstance(value, str) else value
    if not isinstance(fields, dict):
        raise BrokerError("options.headers: expected an object of names and values")
    if len(fields) > MAX_CHOSEN:
        raise BrokerError(f"options.headers: found {len(fields)}; at most {MAX_CHOSEN}")
    if len({name.lower() for name in fields}) < len(fields):
        raise BrokerError("options.headers: found a name twice")
    found = {}
    for name, text in fields.items():
        if isinstance(text, int | float) and not isinstance(text, bool):
            text = encode(text).decode()
        if not isinstance(text, str):
            raise BrokerError(f"options.headers: {name[:100]!r}: expected a text or a number")
        found[name] = text.strip(" ")
    return found


def _fields_of(text: str) -> Any:
    for candidate in (text, f"{{{text}}}"):
        try:
            fields = decode(candidate)
        except MessageError:
            continue
        if isinstance(fields, dict):
            return fields
    lines = [line for line in re.split(r"\r?\n", text) if line.strip()]
    pairs = [line.partition(":")[::2] for line in lines if ":" in line]
    fields = dict(pairs)
    if len(fields) < len(lines) or not all(map(_TOKEN.fullmatch, fields)):
        raise BrokerError("options.headers: expected an object of names and values")
    return fields


def _wrong_name(name: str) -> str:
    if not _TOKEN.fullmatch(name):
        return "no header's name"
    if name.lower() in _TRAVEL or name.lower() == "host":
        return f"{name}, which says how the message travels"
    return ""


def _no_twins(options: Options, key: str, names: Mapping[str, Any]) -> None:
    seen: set[str] = set()
    for name in names:
        if name.lower() in seen:
            options.problem(f"{key}.{name}", "the same name twice", "it once, in any case")
        seen.add(name.lower())


def _value(where: str, text: str) -> str:
    if not _PRINTABLE.fullmatch(text):
        # Not quoted: it may be a secret, and one that is cut is not told from other text.
        place = next(at for at, char in enumerate(text, 1) if not _PRINTABLE.fullmatch(char))
        found = f"another character at place {place} of {len(text)}"
        raise BrokerError(f"{where}: found {found}; expected printable ASCII on one line")
    if len(text) > MAX_HEADER:
        raise BrokerError(f"{where}: found {len(text)} characters; at most {MAX_HEADER}")
    return text


def _json(value: Any, job: Job) -> Any:
    """*value* of the task file with the placeholders in its texts replaced."""
    if isinstance(value, dict):
        return {key: _json(item, job) for key, item in value.items()}
    if isinstance(value, list):
        return [_json(item, job) for item in value]
    if value == "{data}":
        return job.arguments
    if not isinstance(value, str):
        return value
    template = Template(value)
    if len(template.paths) != 1 or any(template.texts):
        return template.fill(job.arguments)
    try:  # alone, it keeps its type
        return find(template.paths[0], job.arguments)
    except LookupError:
        raise BrokerError(f"data.{template.paths[0]}: found nothing; expected a value") from None
