"""
Facts as text: a JSON object, or lines of ``key=value`` as a shell would read them.
"""

from __future__ import annotations

import shlex
from typing import Any

from ..errors import MessageError
from ..messages import decode


def parse_facts(text: str) -> dict[str, frozenset[str]]:
    """Read what a file holds or a program has printed.

    Args:
        text: ``{"role": ["lb", "proxy"]}``, or lines ``role=lb+proxy``; empty
            lines and lines that start with # do not count.

    Raises:
        ValueError: It is neither; the text names the line.

    >>> sorted(parse_facts("state=active\\nrole=lb+proxy")["role"])
    ['lb', 'proxy']
    """
    if text.lstrip().startswith("{"):
        try:
            fields = decode(text)
        except MessageError as exc:
            raise ValueError(str(exc)) from None
        return {key: frozenset(_texts(key, value)) for key, value in fields.items()}
    return {
        key: frozenset(part.strip() for part in value.split("+") if part.strip())
        for key, value in parse_assignments(text).items()
    }


def parse_assignments(text: str) -> dict[str, str]:
    """Lines ``KEY=value``, the value maybe in quotes, as in /etc/default.

    >>> parse_assignments('NGCP_IS_PROXY="yes"  # one')
    {'NGCP_IS_PROXY': 'yes'}
    """
    found = {}
    for number, line in enumerate(text.splitlines(), start=1):
        try:
            words = shlex.split(line, comments=True)
        except ValueError as exc:
            raise ValueError(f"line {number}: {exc}") from None
        if words and words[0] == "export":
            words = words[1:]
        for word in words:
            key, equals, value = word.partition("=")
            if not key or not equals:
                raise ValueError(f"line {number}: found {line.strip()!r}; expected key=value")
            found[key] = value
    return found


def _texts(key: str, value: Any) -> list[str]:
    values = value if isinstance(value, list) else [value]
    if not all(isinstance(item, str) for item in values):
        raise ValueError(f"{key}: expected a text or a list of texts")
    return values
