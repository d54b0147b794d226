"""
What keys and ids on the command line look like: what cannot be one is wrong usage.
"""

from __future__ import annotations

import re

import click

_ENTRY = re.compile(r"\d{1,20}-\d{1,20}")
_CURSOR = re.compile(r"\d{1,20}(-\d{1,20})?")


def key(word: str) -> str:
    """A key of Redis."""
    # click takes the word behind an option for its value whatever it is: without its
    # key, "--feedback-stream --no-wait" would wait, and keep the answers in "--no-wait".
    if not word or word.startswith("-"):
        raise click.BadParameter(f"{word!r} is no key; one does not begin with '-'")
    return word


def entry(word: str) -> str:
    """The whole id of a stream's entry: half of one would be another's as well."""
    return _matched(_ENTRY, word)


def cursor(word: str) -> str:
    """An entry after which to read; the part behind the dash may be missing, 0 is all."""
    return _matched(_CURSOR, word)


def _matched(form: re.Pattern[str], word: str) -> str:
    if not form.fullmatch(word):
        raise click.BadParameter(f"{word!r} is no id; one looks like 1700000000000-0")
    return word
