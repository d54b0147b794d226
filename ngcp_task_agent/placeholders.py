"""
Values of a request inside texts of a task file: ``{data.host}``.

A placeholder is replaced by one value and never looked at again: what a value holds
is no syntax, whoever has chosen it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from .errors import BrokerError
from .messages import encode

# {{data.host}} stands for {data.host} itself; braces of any other kind are ordinary.
_PLACEHOLDER = re.compile(r"\{(\{data\.[\w.-]+\})\}|\{data\.([\w-]+(?:\.[\w-]+)*)\}")


class Template:
    """A text with placeholders.

    Args:
        text: For example ``--host={data.host}``; a path goes into mappings and, by
            number, into lists: ``{data.hosts.0.name}``.

    Attributes:
        paths: What is asked for, in order: ``("host",)``.

    >>> Template("--host={data.host}").fill({"host": "sp1 ; reboot"})
    '--host=sp1 ; reboot'
    """

    __slots__ = ("_parts", "paths", "text")

    def __init__(self, text: str) -> None:
        self.text = text
        self._parts: list[str] = []  # texts and, at the odd places, paths
        at = 0
        plain = ""
        for match in _PLACEHOLDER.finditer(text):
            plain += text[at : match.start()]
            at = match.end()
            if match[1]:
                plain += match[1]
            else:
                self._parts += [plain, match[2]]
                plain = ""
        self._parts.append(plain + text[at:])
        self.paths: Sequence[str] = tuple(self._parts[1::2])

    @property
    def texts(self) -> Sequence[str]:
        """What stands before, between and behind the placeholders; one more than `paths`."""
        return tuple(self._parts[::2])

    def fill(self, arguments: Mapping[str, Any]) -> str:
        """The text with the values of *arguments* in it.

        Raises:
            BrokerError: One is missing, or neither a text, a number, true nor false.
        """
        parts = self._parts.copy()
        parts[1::2] = self.values(arguments)
        return "".join(parts)

    def values(self, arguments: Mapping[str, Any]) -> list[str]:
        """The values alone, as texts, in the order of `paths`; raises as `fill` does."""
        return [_text_at(path, arguments) for path in self.paths]


def find(path: str, arguments: Mapping[str, Any]) -> Any:
    """The value at *path*, such as ``host`` or ``hosts.0.name``.

    Raises:
        LookupError: There is none.
    """
    value: Any = arguments
    for key in path.split("."):
        if isinstance(value, Mapping):
            value = value[key]
        elif isinstance(value, list) and key.isdecimal():
            value = value[int(key)]
        else:
            raise LookupError(path)
    return value


def _text_at(path: str, arguments: Mapping[str, Any]) -> str:
    try:
        value = find(path, arguments)
    except LookupError:
        raise BrokerError(f"data.{path}: found nothing; expected a text or a number") from None
    if isinstance(value, str):
        if "\0" in value:
            raise BrokerError(f"data.{path}: found a NUL character; expected a text without it")
        return value
    if isinstance(value, bool | int | float):
        return encode(value).decode()
    found = "nothing" if value is None else "an array" if isinstance(value, list) else "an object"
    raise BrokerError(f"data.{path}: found {found}; expected a text or a number")
