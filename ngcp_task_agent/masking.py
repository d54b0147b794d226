"""
Keeps secrets out of what leaves the node: output, reasons, log lines.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from typing import Any
from urllib.parse import quote, quote_plus

from .messages import Encoded, decode, encode
from .placeholders import find

STARS = "***"  # what stands in the place of a secret
MOST = 20  # values of one request that can be hidden
LONGEST = 1024  # characters of them together
SHORTEST_LINE = 8  # characters of a line that is hidden by itself; "}" is no secret


class Mask:
    """Texts that are hidden wherever they occur.

    Args:
        values: The secrets; empty ones hide nothing. Each is also found as JSON and as
            Python would write it, with its quotes, backslashes and line ends escaped.

    >>> Mask(["s3cret"]).text("password=s3cret;")
    'password=***;'
    """

    __slots__ = ("_any", "_any_in_json", "_forms", "_longest", "_runs")

    def __init__(self, values: Iterable[str] = ()) -> None:
        forms = {form for value in values if value for form in _forms(value)}
        self._forms = sorted(forms)
        self._runs = [_run_of(form) for form in self._forms]
        in_json = {encode(form.decode("utf-8", "replace"))[1:-1] for form in forms} | forms
        self._any = re.compile(b"|".join(map(re.escape, self._forms)))
        self._any_in_json = re.compile(b"|".join(map(re.escape, in_json)))
        self._longest = max(map(len, forms), default=0)

    def __bool__(self) -> bool:
        return bool(self._forms)

    def text(self, text: str) -> str:
        """*text* without the secrets."""
        data = text.encode("utf-8", "surrogatepass") if self._forms else b""
        if not self._forms or not self._any.search(data):
            return text
        stream = MaskedStream(self)
        return (stream.feed(data) + stream.rest()).decode("utf-8", "surrogatepass")

    def value(self, value: Any) -> Any:
        """A value as JSON has it, without the secrets in its texts, numbers and keys.

        Raises:
            MessageError: JSON has no form for it.
        """
        encoded = value.text if isinstance(value, Encoded) else encode(value)
        # Most results hold none: one search instead of one for each text.
        return self._walk(decode(encoded)) if self._any_in_json.search(encoded) else value

    def _walk(self, value: Any) -> Any:
        if isinstance(value, dict):
            return {self.text(key): self._walk(item) for key, item in value.items()}
        if isinstance(value, list):
            return [self._walk(item) for item in value]
        if value is None or isinstance(value, bool):
            return value
        plain = value if isinstance(value, str) else encode(value).decode()
        hidden = self.text(plain)
        return value if hidden == plain else hidden

    def spans(self, data: bytes, covered: int) -> list[tuple[int, int]]:
        """Where secrets stand in *data*, in order; what meets or overlaps is one.

        Args:
            covered: Bytes at the beginning that are known to belong to one.
        """
        found = [(0, covered)] if covered else []
        for form, run in zip(self._forms, self._runs, strict=True):
            if len(form) == 1:
                found += [match.span() for match in run.finditer(data)]
                continue
            match = run.search(data)
            while match:
                found.append(match.span())
                # The last of the run may overlap with one that is no part of it.
                match = run.search(data, match.end() - len(form) + 1)
        joined: list[tuple[int, int]] = []
        for start, end in sorted(found):
            if joined and start <= joined[-1][1]:
                joined[-1] = (joined[-1][0], max(end, joined[-1][1]))
            else:
                joined.append((start, end))
        return joined

    def begun(self, data: bytes) -> int:
        """How many bytes at the end of *data* could be the beginning of a secret."""
        for length in range(min(self._longest - 1, len(data)), 0, -1):
            end = data[-length:]
            if any(form.startswith(end) and len(form) > length for form in self._forms):
                return length
        return 0


@functools.lru_cache(maxsize=16)
def mask_of(secrets: frozenset[str]) -> Mask:
    """The mask for secrets that stay the same from job to job, such as a task's keys."""
    return Mask(secrets)


class MaskedStream:
    """Hides secrets in pieces, also one that is cut across several of them."""

    __slots__ = ("_covered", "_held", "_mask", "_starred")

    def __init__(self, mask: Mask) -> None:
        self._mask = mask
        self._held = b""  # what could be the beginning of a secret
        self._covered = 0  # bytes of it that belong to a secret whose stars are out already
        self._starred = False  # whether what was shown last are stars

    def feed(self, piece: bytes) -> bytes:
        """The next piece, as far as it may be shown yet."""
        data = self._held + piece
        return self._show(data, len(data) - self._mask.begun(data))

    def rest(self) -> bytes:
        """What was held back, at the end."""
        return self._show(self._held, len(self._held))

    def _show(self, data: bytes, end: int) -> bytes:
        # What begins before `end` cannot become part of a secret later: else the bytes
        # from there to the end of `data` would be the beginning of one.
        shown: list[bytes] = []
        at, covered = 0, self._covered
        self._covered = max(0, covered - end)
        for start, stop in self._mask.spans(data, covered):
            if start >= end:
                break
            shown.append(data[at:start])
            if start or not self._starred:
                shown.append(STARS.encode())
            at = min(stop, end)
            self._covered = max(0, stop - end)
        shown.append(data[at:end])
        if end:
            self._starred = 0 < at == end
        self._held = data[end:]
        return b"".join(shown)


def secrets_in(names: Collection[str], values: Mapping[str, Any]) -> set[str]:
    """The texts that *names* stand for.

    Args:
        names: Paths into *values*, such as ``data.login.password``, or names of variables.
        values: Where they are looked for; what is a list or a mapping hides all in it.

    >>> sorted(secrets_in(["data.pin", "TOKEN"], {"data": {"pin": 4711}, "TOKEN": "x1"}))
    ['4711', 'x1']
    """
    found: set[str] = set()
    for name in names:
        with suppress(LookupError):
            waiting = [find(name, values)]
            while waiting:  # as deep as a stranger likes
                value = waiting.pop()
                if isinstance(value, Mapping):
                    waiting += value.values()
                elif isinstance(value, list):
                    waiting += value
                elif value is not None and not isinstance(value, bool):
                    found.add(value if isinstance(value, str) else encode(value).decode())
    return found - {""}


def excess(secrets: Collection[str]) -> str:
    """Why so much of a request cannot be hidden; empty if it can.

    Secrets are looked for in the event loop, in all that is said.
    """
    if len(secrets) > MOST:
        return f"found {len(secrets)} values to be masked; expected at most {MOST}"
    length = sum(map(len, secrets))
    if length > LONGEST:
        return f"found {length} characters to be masked; expected at most {LONGEST}"
    return ""


def _run_of(form: bytes) -> re.Pattern[bytes]:
    """Finds *form*, and as many as follow it, each touching the one before.

    A secret like ``aaaa`` would otherwise be found at every letter.
    """
    period = _period(form)
    return re.compile(re.escape(form) + b"(?:" + re.escape(form[-period:]) + b")*")


def _period(form: bytes) -> int:
    """The least shift by which *form* overlaps with itself; its length if by none."""
    borders = [0] * len(form)  # Knuth, Morris, Pratt: longest border of each beginning
    border = 0
    for place in range(1, len(form)):
        while border and form[place] != form[border]:
            border = borders[border - 1]
        border += form[place] == form[border]
        borders[place] = border
    return len(form) - borders[-1]


def _forms(value: str) -> Iterator[bytes]:
    """How a secret may be written: line by line too, if it has several."""
    texts = {value, value.strip(), " ".join(value.split())}
    texts.update(line for line in value.splitlines() if len(line) >= SHORTEST_LINE)
    for text in texts - {""}:
        as_json = encode(text.encode("utf-8", "replace").decode())[1:-1]
        yield text.encode("utf-8", "surrogatepass")
        yield as_json
        yield as_json.replace(b"/", b"\\/")  # as PHP writes it
        yield quote(text, safe="", errors="replace").encode()  # in a URL
        yield quote_plus(text, errors="replace").encode()  # in a form
        yield "".join(map(_escaped, as_json.decode())).encode()
        yield repr(text)[1:-1].encode("utf-8", "replace")


def _escaped(letter: str) -> str:
    """As those write JSON who trust in ASCII only."""
    if letter.isascii():
        return letter
    code = letter.encode("utf-16-be").hex()
    return "".join(f"\\u{code[at : at + 4]}" for at in range(0, len(code), 4))
