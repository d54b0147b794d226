"""
Keeps secrets out of what leaves the node: output, reasons, log lines.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from typing import Any

from .messages import encode
from .placeholders import find

STARS = "***"  # what stands in the place of a secret


class Mask:
    """Texts that are hidden wherever they occur.

    Args:
        values: The secrets; empty ones hide nothing. Each is also found as JSON and as
            Python would write it, with its quotes, backslashes and line ends escaped.

    >>> Mask(["s3cret"]).text("password=s3cret;")
    'password=***;'
    """

    __slots__ = ("_forms", "_longest")

    def __init__(self, values: Iterable[str] = ()) -> None:
        forms = {form for value in values if value for form in _forms(value)}
        self._forms = sorted(forms)
        self._longest = max(map(len, forms), default=0)

    def __bool__(self) -> bool:
        return bool(self._forms)

    def text(self, text: str) -> str:
        """*text* without the secrets."""
        if not self._forms:
            return text
        stream = MaskedStream(self)
        data = text.encode("utf-8", "surrogatepass")
        return (stream.feed(data) + stream.rest()).decode("utf-8", "surrogatepass")

    def value(self, value: Any) -> Any:
        """A value as JSON has it, without the secrets in its texts, numbers and keys."""
        if isinstance(value, dict):
            return {self.text(str(key)): self.value(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self.value(item) for item in value]
        if value is None or isinstance(value, bool):
            return value
        plain = value if isinstance(value, str) else encode(value).decode()
        hidden = self.text(plain)
        return value if hidden == plain else hidden

    def spans(self, data: bytes, covered: int) -> list[tuple[int, int]]:
        """Where secrets stand in *data*, overlapping ones as one, in order.

        Args:
            covered: Bytes at the beginning that are known to belong to one.
        """
        found = [(0, covered)] if covered else []
        for form in self._forms:
            at = data.find(form)
            while at >= 0:
                found.append((at, at + len(form)))
                at = data.find(form, at + 1)
        joined: list[tuple[int, int]] = []
        for start, end in sorted(found):
            if joined and start < joined[-1][1]:
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


class MaskedStream:
    """Hides secrets in pieces, also one that is cut across several of them."""

    __slots__ = ("_covered", "_held", "_mask")

    def __init__(self, mask: Mask) -> None:
        self._mask = mask
        self._held = b""  # what could be the beginning of a secret
        self._covered = 0  # bytes of it that belong to a secret whose stars are out already

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
        at, running = 0, self._covered
        self._covered = max(0, running - end)
        for start, stop in self._mask.spans(data, running):
            if start >= end:
                break
            shown.append(data[at:start])
            if start or not running:
                shown.append(STARS.encode())
            at = min(stop, end)
            self._covered = max(0, stop - end)
        shown.append(data[at:end])
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
            found.update(_texts(find(name, values)))
    return found


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from _texts(item)
    elif isinstance(value, str):
        yield value
    elif value is not None and not isinstance(value, bool):
        yield encode(value).decode()


def _forms(value: str) -> set[bytes]:
    plain = value.encode("utf-8", "surrogatepass")
    as_json = encode(value.encode("utf-8", "replace").decode())[1:-1]
    return {plain, as_json, repr(value)[1:-1].encode("utf-8", "replace")}
