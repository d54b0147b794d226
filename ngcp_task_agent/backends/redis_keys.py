"""
Names of the Redis keys that belong to a control stream.

All of them share its hash tag: a cluster keeps them on one server, where a script may
change several at once.
"""

from __future__ import annotations

from ..feedback import OWN_KEYS


def tag_of(key: str) -> str:
    """What a cluster hashes of *key*: the text between the first ``{`` and the next ``}``.

    >>> tag_of("{lb}:requests"), tag_of("requests"), tag_of("{}requests")
    ('lb', 'requests', '{}requests')
    """
    _, brace, rest = key.partition("{")
    tag, end, _ = rest.partition("}")
    return tag if brace and end and tag else key


def key_of(control_stream: str, kind: str) -> str:
    """The key of what is kept beside *control_stream*.

    A name that is its own tag but holds braces (``{}requests``) has keys that a cluster
    puts elsewhere: such a name is no good for a control stream there.

    >>> key_of("requests", "dead")
    'ngcp-task-agent:{requests}:dead'
    >>> key_of("{lb}:requests", "dead")
    'ngcp-task-agent:{lb}:{lb}:requests:dead'
    """
    tag = tag_of(control_stream)
    name = "" if tag == control_stream else f":{control_stream}"
    return f"{OWN_KEYS}{{{tag}}}{name}:{kind}"


def dead_key(control_stream: str) -> str:
    """Where the requests of *control_stream* are that have failed for good."""
    return key_of(control_stream, "dead")
