"""
Where an HTTP request goes, and what a client may choose of that.

Values are percent-encoded: none of them is ever a `/`, a `?` or a step up.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from urllib.parse import quote, unquote_to_bytes

from ..errors import BrokerError
from ..interfaces import Job
from ..options import Options, describe
from ..placeholders import Template

MAX_URL = 8000  # characters; RFC 9110, 4.1 asks servers to take as many
MAX_PATH = 2048  # characters of options.path, which an administrator's pattern looks at

_URL = re.compile(r"(https?)://([^/?#]*)([^?#]*)(?:\?([^#]*))?", re.IGNORECASE)
_AUTHORITY = re.compile(r"(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9._-]+)(?::([0-9]{1,5}))?")
_URI = re.compile(r"(?:[A-Za-z0-9._~!$&'()*+,;=:@/?-]|%[0-9A-Fa-f]{2})*")  # RFC 3986
_PORTS = {"http": 80, "https": 443}


def origin(url: str) -> tuple[str, str, int]:
    """Scheme, host and port of an encoded http URL.

    Raises:
        ValueError: It is none, or holds a user's name.

    >>> origin("http://LB01a/x?y")
    ('http', 'lb01a', 80)
    """
    match = _URL.fullmatch(url)
    authority = match and _AUTHORITY.fullmatch(match[2])
    if not match or not authority or not _URI.fullmatch(url, match.end(2)):
        raise ValueError(url)
    if not _port_is_good(authority):
        raise ValueError(url)
    scheme = match[1].lower()
    return scheme, authority[1].lower(), int(authority[2] or _PORTS[scheme])


class Target:
    """Where a request goes: ``url``, ``allow_path`` and ``unix_socket``'s rules for them."""

    def __init__(self, options: Options) -> None:
        url = options.text("url", required="a URL, http://… or https://…")
        self._allowed = pattern(options, "allow_path", options.text("allow_path"))
        self._base, self._path, self._query = "", [Template("")], Template("")
        match = _URL.fullmatch(url)
        if not url or match is None:
            if url:
                options.problem("url", describe(url), "http://… or https://…, without a fragment")
            return
        self._base = f"{match[1].lower()}://{match[2]}"
        self._path = [Template(text) for text in (match[3] or "/").split("/")[1:]]
        self._query = Template(match[4] or "")
        self._check(options, url)

    @property
    def secure(self) -> bool:
        """Whether it is reached by TLS."""
        return self._base.startswith("https:")

    def fill(self, job: Job) -> str:
        """The URL for *job*.

        Raises:
            BrokerError: A value is missing or would change what the URL means, or
                `options.path` is not what the task allows.
        """
        url = f"{self._base}/" + "/".join(_segment(text, job) for text in self._path)
        query = filled(self._query, job, _percent)
        chosen = self._chosen(job)
        if chosen:
            url = url.rstrip("/") + chosen
        if query:
            url += f"?{query}"
        if len(url) > MAX_URL:
            raise BrokerError(f"the URL would be {len(url)} characters long; at most {MAX_URL}")
        return url

    def _chosen(self, job: Job) -> str:
        path = job.options.get("path")
        if self._allowed is None or path is None or path == "":
            return ""
        if not isinstance(path, str):
            raise BrokerError("options.path: expected a text")
        wrong = _wrong_path(path)
        if not wrong and "?" in path and self._query.text:
            wrong = "a query, and the task has one of its own"
        if not wrong and not self._allowed.fullmatch(path):
            wrong = repr(path[:100])
        if wrong:
            raise BrokerError(f"options.path: found {wrong}; expected a path that the task allows")
        return path

    def _check(self, options: Options, url: str) -> None:
        authority = self._base.partition("://")[2]
        match = _AUTHORITY.fullmatch(authority)
        if "@" in authority:
            options.problem("url", "a user's name", "headers: {Authorization: …}")
        elif Template(authority).paths:
            options.problem("url", "a placeholder in the host", "placeholders behind it only")
        elif match is None or not _port_is_good(match):
            options.problem(
                "url", f"the host {authority!r}", "a host's name or address, and a port"
            )
        texts = [text for part in (*self._path, self._query) for text in part.texts]
        if not all(_URI.fullmatch(text) for text in texts):
            options.problem("url", describe(url), "other characters percent-encoded (%20)")
        if any(part.text in (".", "..") for part in self._path):
            options.problem("url", describe(url), "a path without . and ..")


def pattern(options: Options, key: str, text: str) -> re.Pattern[str] | None:
    """The regular expression *text* at *key*; None where there is none."""
    if not text:
        if key in options or "." in key:
            options.problem(key, "nothing", "a regular expression")
        return None
    try:
        return re.compile(text, re.ASCII)
    except (re.error, RecursionError, OverflowError) as exc:
        options.problem(key, f"{describe(text)} ({exc})", "a regular expression")
        return None


def filled(template: Template, job: Job, escape: Callable[[str], str]) -> str:
    """*template* with its values in the form that *escape* gives them.

    Raises:
        BrokerError: One is missing, or cannot be sent.
    """
    texts = list(template.texts)
    for number, value in enumerate(template.values(job.arguments)):
        try:
            texts[number] += escape(value)
        except UnicodeError as exc:
            path = template.paths[number]
            raise BrokerError(f"data.{path}: expected characters that can be sent") from exc
    return "".join(texts)


def _wrong_path(path: str) -> str:
    """What is wrong with a path whatever the pattern says; "" for nothing."""
    if len(path) > MAX_PATH:
        return f"{len(path)} characters, more than {MAX_PATH}"
    if not path.startswith("/") or path.startswith("//"):
        return f"{path[:100]!r}, which does not begin with one /"
    if not _URI.fullmatch(path):
        return "characters that have to be percent-encoded"
    # Some servers decode before they take steps up, know \ as / and drop what follows a ;.
    plain = unquote_to_bytes(path.partition("?")[0])
    if any(byte < 0x20 or byte == 0x7F for byte in unquote_to_bytes(path)):
        return "control characters"
    steps = (step.partition(b";")[0] for step in re.split(rb"[/\\]", plain))
    return "a . or .. step" if any(step in (b".", b"..") for step in steps) else ""


def _port_is_good(authority: re.Match[str]) -> bool:
    return 0 < int(authority[2] or 1) < 65536


def _segment(template: Template, job: Job) -> str:
    text = filled(template, job, _percent)
    # Encoding does not help here: %2E%2E is a step up, too.
    if template.paths and text in ("", ".", ".."):
        raise BrokerError(f"data.{template.paths[0]}: found {text!r}; expected a name for the URL")
    return text


def _percent(value: str) -> str:
    return quote(value, safe="")
