"""
The `dst` language: which nodes a request is for.

    dst     = element *( "," element )              any one element is enough
    element = pattern [ "|" filter *( ";" filter ) ]
    filter  = key "=" value *( "+" value )          every filter must hold, any value may

`pattern` is an fnmatch pattern over a node's names; a filter belongs to its own
element, so "prx*,db01?|state=active" is every proxy and the active one of the
pair db01. Values are compared literally. Everything fails closed: what cannot be
parsed, and a fact a node does not have, selects nothing.

This module is pure: no clock, no network, no configuration.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import translate
from functools import lru_cache

from .errors import MessageError

LOCAL_NAMES = frozenset(("local", "localhost"))  # the node that is local to the request
MAX_PATTERN = 255  # characters; no host name is longer, and a regular expression costs memory
_CACHED_LENGTH = 1024  # characters; longer texts are parsed each time, so the cache stays small


@dataclass(frozen=True, slots=True)
class Node:
    """What this host is, as far as `dst` can see.

    Attributes:
        name: The name it signs with, for example ``"prx01a"``.
        aliases: Further names it answers to.
        facts: Key to all its present values, for example
            ``{"state": {"active"}, "role": {"proxy", "lb"}}``.
    """

    name: str
    aliases: tuple[str, ...] = ()
    facts: Mapping[str, frozenset[str]] = field(default_factory=dict)

    @property
    def names(self) -> tuple[str, ...]:
        """All names, the one it signs with first."""
        return (self.name, *self.aliases)


@dataclass(frozen=True, slots=True)
class Element:
    """One comma-separated part of a `dst`; built by `parse`."""

    pattern: str
    filters: tuple[tuple[str, frozenset[str]], ...] = ()
    glob: re.Pattern[str] | None = field(default=None, compare=False)

    def selects(self, node: Node, local: bool) -> bool:
        """Whether *node* has a matching name and passes every filter."""
        if self.pattern != "*" and not self._matches_name_of(node, local):
            return False
        facts = node.facts
        for key, allowed in self.filters:
            values = facts.get(key)
            if values is None or allowed.isdisjoint(values):
                return False
        return True

    def _matches_name_of(self, node: Node, local: bool) -> bool:
        if local and self.pattern in LOCAL_NAMES:
            return True
        if self.glob is None:
            return self.pattern == node.name or self.pattern in node.aliases
        return any(self.glob.match(name) for name in node.names)


@dataclass(frozen=True, slots=True)
class Destination:
    """A parsed `dst`; build it with `parse`."""

    elements: tuple[Element, ...]

    @classmethod
    def parse(cls, text: str) -> Destination:
        """Read a `dst`.

        Args:
            text: For example ``"prx*|state=active;role=proxy+lb"``. Blanks around
                separators do not count.

        Returns:
            At least one element, in the order written.

        Raises:
            MessageError: An empty element, filter or value, a second ``|``, or a
                pattern of more than `MAX_PATTERN` characters.

        >>> active_proxies = Destination.parse("prx* | state=active")
        >>> active_proxies.selects(Node("prx01a", (), {"state": frozenset({"active"})}))
        True
        >>> active_proxies.selects(Node("prx01b", (), {"state": frozenset({"standby"})}))
        False
        """
        return _parse_cached(text) if len(text) <= _CACHED_LENGTH else _parse(text)

    def selects(self, node: Node, local: bool = False) -> bool:
        """Whether any element selects *node*.

        Args:
            node: Names and present facts.
            local: Whether *node* is the one the request is local to, so that it
                also answers to ``local`` and ``localhost``.
        """
        for element in self.elements:  # noqa: SIM110 (half the time of any(), on the hot path)
            if element.selects(node, local):
                return True
        return False

    def names(self, node: Node, local: bool = False) -> bool:
        """Whether an element without wildcards selects *node*: only then may it say no."""
        return any(e.glob is None and e.selects(node, local) for e in self.elements)

    def __str__(self) -> str:
        return ",".join(map(_format_element, self.elements))


def _parse(text: str) -> Destination:
    return Destination(tuple(_parse_element(part.strip()) for part in text.split(",")))


# Clients use the same few expressions over and over. A malformed one raises and
# is therefore never cached.
_parse_cached = lru_cache(maxsize=1024)(_parse)


def _parse_element(text: str) -> Element:
    pattern, bar, rest = text.partition("|")
    pattern = pattern.strip()
    if not pattern or (bar and not rest.strip()) or "|" in rest:
        raise MessageError(f"dst: bad element {text[:80]!r}; write for example 'prx*|state=active'")
    if len(pattern) > MAX_PATTERN:
        raise MessageError(f"dst: pattern of {len(pattern)} characters, at most {MAX_PATTERN}")
    filters = tuple(_parse_filter(part.strip()) for part in rest.split(";")) if bar else ()
    return Element(pattern, filters, _compile(pattern))


def _compile(pattern: str) -> re.Pattern[str] | None:
    # fnmatch.fnmatchcase would keep up to 32,768 compiled patterns for whoever sends them.
    return re.compile(translate(pattern)) if any(c in pattern for c in "*?[") else None


def _parse_filter(text: str) -> tuple[str, frozenset[str]]:
    key, equals, values = (part.strip() for part in text.partition("="))
    allowed = frozenset(value.strip() for value in values.split("+"))
    if not key or not equals or "" in allowed:
        raise MessageError(f"dst: bad filter {text[:80]!r}; write for example 'role=proxy+lb'")
    return key, allowed


def _format_element(element: Element) -> str:
    filters = ";".join(f"{key}={'+'.join(sorted(values))}" for key, values in element.filters)
    return f"{element.pattern}|{filters}" if filters else element.pattern
