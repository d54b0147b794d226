"""
The `dst` language: which nodes a request is for.

    dst     = element *( "," element )              any one element is enough
    element = pattern [ "|" filter *( ";" filter ) ]
    filter  = key "=" value *( "+" value )          every filter must hold, any value may

`pattern` is an fnmatch pattern over a node's names; a filter belongs to its own
element, so "prx*,db01?|state=active" is every proxy and the active one of the
pair db01. Values are compared literally. Everything fails closed: what cannot be
parsed, and a fact a node does not have, selects nothing.

Why a node is not selected is found out by the same code: `Element.explain` asks it about
each condition alone. It costs nothing where only yes or no is wanted.

This module is pure: no clock, no network, no configuration.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from fnmatch import translate
from functools import lru_cache
from typing import NamedTuple

from .errors import MessageError

LOCAL_NAMES = frozenset(("local", "localhost"))  # the node that is local to the request
MAX_LENGTH = 64 * 1024  # characters of a dst: some thousand names
MAX_PATTERN = 255  # characters; no host name is longer
MAX_CLASSES = 8  # patterns with [...] in one dst; each costs a regular expression
_CACHED_LENGTH = 256  # characters; longer texts are parsed each time, so the cache stays small
_CACHED = 128  # texts


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

    def is_local_to(self, src: str, near: bool) -> bool:
        """Whether a request is local to this node, so that ``local`` names it.

        Args:
            src: The client's host name, as it claims.
            near: Whether the request came in by this host, or the bus is on it.
        """
        return near or src == self.name or src in self.aliases


class Obstacle(NamedTuple):
    """One thing for which a node is not selected.

    Attributes:
        key: The fact's, for example ``"state"``; empty for the node's name.
        wanted: What would do: the pattern, or any of these values.
        found: The node's names or the fact's values; None where the fact is unknown.

    >>> print(Obstacle("role", ("lb", "proxy"), ("db",)))
    role is db, not lb or proxy
    >>> print(Obstacle("role", ("lb",), None))
    role is unknown, not lb
    >>> print(Obstacle("", ("prx*",), ("db01a", "db")))
    name is db01a (db), not prx*
    """

    key: str
    wanted: tuple[str, ...]
    found: tuple[str, ...] | None

    def __str__(self) -> str:
        wanted = " or ".join(self.wanted)
        if self.found is None:
            return f"{self.key} is unknown, not {wanted}"
        if not self.key:
            aliases = f" ({', '.join(self.found[1:])})" if self.found[1:] else ""
            return f"name is {self.found[0]}{aliases}, not {wanted}"
        return f"{self.key} is {'+'.join(self.found) or 'empty'}, not {wanted}"


class Verdict(NamedTuple):
    """What one element of a `dst` says of a node.

    Attributes:
        element: As `str` writes it, for example ``"prx*|state=active"``.
        obstacles: Why it does not select the node; empty where it does.
    """

    element: str
    obstacles: tuple[Obstacle, ...]

    @property
    def selected(self) -> bool:
        """Whether the element selects the node."""
        return not self.obstacles


@dataclass(frozen=True, slots=True)
class Element:
    """One comma-separated part of a `dst`; built by `parse`."""

    pattern: str
    filters: tuple[tuple[str, frozenset[str]], ...] = ()
    literal: bool = field(default=True, compare=False)
    classes: re.Pattern[str] | None = field(default=None, compare=False)

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

    def explain(self, node: Node, local: bool = False) -> Verdict:
        """Why *node* is selected, or not; see `selects`."""
        obstacles = [
            condition.obstacle(node)
            for condition in self.conditions
            if not condition.selects(node, local)
        ]
        return Verdict(_format_element(self), tuple(obstacles))

    @property
    def conditions(self) -> tuple[Element, ...]:
        """Elements with one condition each, the name first; all of them together are this one."""
        name = replace(self, filters=())
        return (name, *(Element("*", (one,), literal=False) for one in self.filters))

    def obstacle(self, node: Node) -> Obstacle:
        """What stands against *node* where this one condition does not hold."""
        if not self.filters:
            return Obstacle("", (self.pattern,), node.names)
        [(key, allowed)] = self.filters
        values = node.facts.get(key)
        found = None if values is None else tuple(sorted(values))
        return Obstacle(key, tuple(sorted(allowed)), found)

    def _matches_name_of(self, node: Node, local: bool) -> bool:
        if local and self.pattern in LOCAL_NAMES:
            return True
        if self.literal:
            return self.pattern == node.name or self.pattern in node.aliases
        if self.classes is not None:
            return any(self.classes.match(name) for name in node.names)
        return any(matches(name, self.pattern) for name in node.names)


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
            MessageError: An empty element, filter or value, a second ``|``, or more
                than `MAX_LENGTH`, `MAX_PATTERN` or `MAX_CLASSES` allow.

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
        return any(e.literal and e.selects(node, local) for e in self.elements)

    def explain(self, node: Node, local: bool = False) -> tuple[Verdict, ...]:
        """What each element says of *node*, in order; one that selects it is enough.

        >>> dst = Destination.parse("prx*|state=active;role=lb,db*")
        >>> for verdict in dst.explain(Node("prx01b", (), {"state": frozenset({"standby"})})):
        ...     print(verdict.element, verdict.selected, *verdict.obstacles, sep="; ")
        prx*|state=active;role=lb; False; state is standby, not active; role is unknown, not lb
        db*; False; name is prx01b, not db*
        """
        return tuple(element.explain(node, local) for element in self.elements)

    def __str__(self) -> str:
        return ",".join(map(_format_element, self.elements))


def _parse(text: str) -> Destination:
    if len(text) > MAX_LENGTH:
        raise MessageError(f"dst: {len(text)} characters; at most {MAX_LENGTH} are read")
    if text.count("[") > MAX_CLASSES:
        raise MessageError(f"dst: {text.count('[')} times '['; at most {MAX_CLASSES} are taken")
    return Destination(tuple(_parse_element(part.strip()) for part in text.split(",")))


# Clients use the same few expressions over and over. A malformed one raises and
# is therefore never cached.
_parse_cached = lru_cache(maxsize=_CACHED)(_parse)


def _parse_element(text: str) -> Element:
    pattern, bar, rest = text.partition("|")
    pattern = pattern.strip()
    if not pattern or (bar and not rest.strip()) or "|" in rest:
        raise MessageError(f"dst: bad element {text[:80]!r}; write for example 'prx*|state=active'")
    if len(pattern) > MAX_PATTERN:
        raise MessageError(f"dst: pattern of {len(pattern)} characters, at most {MAX_PATTERN}")
    filters = tuple(_parse_filter(part.strip()) for part in rest.split(";")) if bar else ()
    literal = not any(character in pattern for character in "*?[")
    classes = re.compile(translate(pattern)) if "[" in pattern else None
    return Element(pattern, filters, literal, classes)


def matches(name: str, pattern: str) -> bool:
    """`fnmatch.fnmatchcase` for patterns of ``*`` and ``?`` alone.

    That one compiles a regular expression for each new pattern and keeps 32,768 of
    them; here patterns come from whoever can publish. Takes at most
    the product of both lengths in steps.

    >>> matches("prx01a", "prx*"), matches("prx01a", "*0?a"), matches("db01a", "prx*")
    (True, True, False)
    """
    at, in_name = 0, 0
    star, resume = -1, 0  # the last * and where in the name it was tried
    while in_name < len(name):
        if at < len(pattern) and pattern[at] == "*":
            star, resume = at, in_name
            at += 1
        elif at < len(pattern) and pattern[at] in ("?", name[in_name]):
            at += 1
            in_name += 1
        elif star >= 0:  # let the * take one character more
            at, resume = star + 1, resume + 1
            in_name = resume
        else:
            return False
    return pattern[at:].strip("*") == ""


def _parse_filter(text: str) -> tuple[str, frozenset[str]]:
    key, equals, values = (part.strip() for part in text.partition("="))
    allowed = frozenset(value.strip() for value in values.split("+"))
    if not key or not equals or "" in allowed:
        raise MessageError(f"dst: bad filter {text[:80]!r}; write for example 'role=proxy+lb'")
    return key, allowed


def _format_element(element: Element) -> str:
    filters = ";".join(f"{key}={'+'.join(sorted(values))}" for key, values in element.filters)
    return f"{element.pattern}|{filters}" if filters else element.pattern
