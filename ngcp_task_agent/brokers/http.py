"""
Sends an HTTP request; the body of the answer is the answer.

The task file says to which server, and clients may choose only what it lets them.
"""

from __future__ import annotations

import os
import re
import ssl
from http import HTTPStatus

from ..errors import BrokerError
from ..interfaces import Job, Output
from ..options import Options
from .http_client import Answer, Reach, exchange
from .http_request import Body, Call, Headers, method
from .http_url import Target

MAX_OUTPUT = 64 * 1024 * 1024  # bytes of the body; beyond, the connection is closed
FLOOD_SHOWN = 256 * 1024  # bytes of such a body that are sent with the error
REASON_LENGTH = 500  # characters of the body quoted in a reason
BEGINNING = 4 * REASON_LENGTH  # bytes of it looked at for that
_RANGE = re.compile(r"([1-5][0-9]{2})(?:-([1-5][0-9]{2}))?")


class HttpBroker:
    """Broker options, all but `url` optional:

    - ``url``: http or https; placeholders may stand in path and query, where their
      values are percent-encoded
    - ``unix_socket``: path of a socket to use instead of the URL's host
    - ``method``: default GET, POST where there is a body
    - ``headers``: names to texts with placeholders
    - ``body``: a text with placeholders; or ``json``: any value with placeholders in
      its texts, ``"{data}"`` being the request's data; or ``form``: names to texts
    - ``allow_path``: regular expression; what matches it wholly may be sent as
      `options.path`, which is appended to the URL's path
    - ``allow_headers``: names of headers to regular expressions for `options.headers`
    - ``ok_status``: codes and ranges, default ``["200-299"]``
    - ``follow_redirects``: yes or no, default no
    - ``tls_ca_file``: authorities to trust instead of the system's
    - ``connect_timeout``: seconds, default 5
    - ``max_output``: bytes of the body, default 64 MiB
    - ``max_headers``: lines, default 128
    """

    def __init__(self, options: Options) -> None:
        self._target = Target(options)
        self._headers = Headers(options)
        self._body = Body(options)
        self._method = method(options, "POST" if self._body.given else "GET")
        self._ok = _statuses(options)
        self._max_output = options.size("max_output", MAX_OUTPUT)
        self._reach = Reach(
            unix_socket=self._unix_socket(options),
            tls=_tls(options),
            connect_timeout=options.seconds("connect_timeout", 5.0),
            max_headers=options.integer("max_headers", 128, minimum=1, maximum=10_000),
            redirects=options.flag("follow_redirects"),
        )

    async def run(self, job: Job, output: Output) -> None:
        call = Call(
            self._method,
            self._target.fill(job),
            self._headers.fill(job, self._body.content_type),
            self._body.fill(job),
        )
        async with exchange(call, self._reach) as answer:
            beginning = await self._read(answer, output)
        if answer.status not in self._ok:
            raise BrokerError(_describe(answer, beginning, output))

    async def close(self) -> None:
        """Nothing outlives a job."""

    async def _read(self, answer: Answer, output: Output) -> bytes:
        """Pass the body on; returns its first bytes."""
        size, beginning = 0, b""
        while piece := await answer.read():
            size += len(piece)
            if size > self._max_output:
                output.cut(FLOOD_SHOWN)
                flood = f"more than {self._max_output} bytes of output (max_output)"
                if answer.status not in self._ok:
                    flood = f"{_describe(answer, beginning, output)}; {flood}"
                raise BrokerError(flood)
            if len(beginning) < BEGINNING:
                beginning += piece[:BEGINNING]
            await output.write(piece)
        return beginning

    def _unix_socket(self, options: Options) -> str:
        path = options.text("unix_socket")
        if path and not os.path.isabs(path):
            options.problem("unix_socket", repr(path), "an absolute path")
        if path and self._target.secure:
            options.problem("unix_socket", "it beside https://…", "http://… for a UNIX socket")
        return path


def _tls(options: Options) -> ssl.SSLContext | None:
    path = options.text("tls_ca_file")
    if not path:
        return None
    path = os.path.join(options.base, path)
    try:
        return ssl.create_default_context(cafile=path)
    except (OSError, ValueError) as exc:
        found = f"{path} ({getattr(exc, 'strerror', None) or exc})"
        options.problem("tls_ca_file", found, "a file with certificates (PEM)")
        return None


def _statuses(options: Options) -> frozenset[int]:
    codes: set[int] = set()
    for text in options.names("ok_status", ("200-299",)):
        match = _RANGE.fullmatch(text)
        found = range(int(match[1]), int(match[2] or match[1]) + 1) if match else ()
        if not found:
            options.problem("ok_status", repr(text), 'codes and ranges, such as [204, "300-399"]')
        codes.update(found)
    return frozenset(codes)


def _describe(answer: Answer, body: bytes, output: Output) -> str:
    """What an answer with another status says, shortly and on one line."""
    word = _line(answer.reason, 100)
    if not word and answer.status in HTTPStatus._value2member_map_:
        word = HTTPStatus(answer.status).phrase
    lines = [f"status {answer.status}"]
    if word:
        lines.append(word)
    if 300 <= answer.status < 400 and answer.location:
        lines.append(f"redirected to {_line(output.masked(answer.location), 200)}")
    text = output.masked(body.decode("utf-8", "replace")).strip().splitlines()
    # A beginning may end in the middle of a secret.
    if text and not (output.masks and len(body) >= BEGINNING):
        lines.append(_line(text[0], REASON_LENGTH))
    return ": ".join(lines)


def _line(text: str, length: int) -> str:
    # A header's bytes may have come as surrogates, which no answer can hold.
    plain = text.encode("utf-8", "replace").decode()
    return "".join(char if char.isprintable() else " " for char in plain).strip()[:length]
