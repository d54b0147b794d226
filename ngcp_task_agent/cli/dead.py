"""
``ngcp-task dead``: requests that have failed for good.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Awaitable, Callable, Mapping
from datetime import datetime
from typing import Any, TypeVar

import click

from ..backends.redis_dead import DeadLetter, DeadLetters
from ..errors import BackendError
from ..feedback import CONTROL_STREAM
from ..messages import encode
from . import words
from .link import EXIT_NONE, F, fail, link_options, open_dead
from .show import printable

LINE = "{id:<20} {when:<19} {task:<24} {src:<16} {attempts:>8}  {reason}"
T = TypeVar("T")


def _options(function: F) -> F:
    stream = click.option(
        "--control-stream", type=words.key, metavar="KEY", help=f"Whose; default {CONTROL_STREAM}."
    )
    task = click.option("--task", metavar="NAME", help="That of this task in --config-dir.")
    decorated: F = stream(task(link_options(function)))
    return decorated


@click.group()
def dead() -> None:
    """Requests of durable tasks that have failed for good.

    \b
    ngcp-task dead list --control-stream backups
    ngcp-task dead replay 1700000000000-0 --control-stream backups
    """


@dead.command("list")
@click.option("--json", "json_", is_flag=True, help="One JSON document for each, a line each.")
@_options
def list_(json_: bool, **link: str | None) -> None:
    """List them, the oldest first.

    \b
    ngcp-task dead list --task backup
    """
    letters = _run(link, lambda letters: letters.all())
    if not json_ and letters:
        click.echo(LINE.format(id="ID", when="FAILED", task="TASK", src="CLIENT",
                               attempts="ATTEMPTS", reason="REASON"))  # fmt: skip
    for letter in letters:
        click.echo(encode(_document(letter)).decode() if json_ else printable(_line(letter)))
    sys.exit(0 if letters else EXIT_NONE)


@dead.command()
@click.argument("entry", type=words.entry, metavar="ID")
@_options
def show(entry: str, **link: str | None) -> None:
    """Show all that is known of one, as JSON.

    \b
    ngcp-task dead show 1700000000000-0
    """
    found = _run(link, lambda letters: _chosen(letters, (entry,), False))
    for letter in found:
        click.echo(encode(_document(letter)).decode())
    sys.exit(0 if found else EXIT_NONE)


@dead.command()
@click.argument("entry", type=words.entry, metavar="ID...", nargs=-1)
@click.option("--all", "all_", is_flag=True, help="All of them.")
@_options
def replay(entry: tuple[str, ...], all_: bool, **link: str | None) -> None:
    """Post them again, each with a new uuid; shown are the old one and the new one.

    What has failed on a node that decides by dst is posted for that node only.

    \b
    ngcp-task dead replay 1700000000000-0
    """
    _one_of(entry, all_)

    async def work(letters: DeadLetters) -> int:
        done = 0
        for letter in await _chosen(letters, entry, all_):
            fresh = await letters.replay(letter)
            if fresh:
                click.echo(printable(f"{letter.about.get('uuid', '')} {fresh}"))
                done += 1
        return done

    sys.exit(0 if _run(link, work) else EXIT_NONE)


@dead.command()
@click.argument("entry", type=words.entry, metavar="ID...", nargs=-1)
@click.option("--all", "all_", is_flag=True, help="All of them.")
@click.option("--older-than", default=0.0, type=click.FloatRange(0), metavar="DAYS",
              help="Only those that have failed before.")  # fmt: skip
@_options
def purge(entry: tuple[str, ...], all_: bool, older_than: float, **link: str | None) -> None:
    """Throw them away for good; shown are their ids.

    \b
    ngcp-task dead purge --all --older-than 30
    """
    _one_of(entry, all_)
    before = time.time() - older_than * 86400

    async def work(letters: DeadLetters) -> int:
        done = 0
        for letter in await _chosen(letters, entry, all_):
            if (not older_than or letter.failed < before) and await letters.purge(letter):
                click.echo(letter.id)
                done += 1
        return done

    sys.exit(0 if _run(link, work) else EXIT_NONE)


def _run(link: Mapping[str, Any], work: Callable[[DeadLetters], Awaitable[T]]) -> T:
    async def connected() -> T:
        async with open_dead(link) as letters:
            return await work(letters)

    try:
        return asyncio.run(connected())
    except BackendError as exc:
        fail(exc)


async def _chosen(letters: DeadLetters, entries: tuple[str, ...], all_: bool) -> list[DeadLetter]:
    if all_:
        return await letters.all()
    found = []
    for entry in entries:
        letter = await letters.get(entry)
        if letter is None:
            click.echo(f"ngcp-task: no dead letter {entry}", err=True)
        else:
            found.append(letter)
    return found


def _one_of(entries: tuple[str, ...], all_: bool) -> None:
    if bool(entries) == all_:
        raise click.UsageError("name IDs, or say --all")


def _document(letter: DeadLetter) -> dict[str, Any]:
    request = letter.about or letter.request.decode("utf-8", "replace")
    return {"id": letter.id, **letter.fields, "request": request}


def _line(letter: DeadLetter) -> str:
    return LINE.format(
        id=letter.id,
        when=datetime.fromtimestamp(letter.failed).isoformat(" ", "seconds"),
        task=str(letter.about.get("task", "")),
        src=str(letter.about.get("src", "")),
        attempts=letter.fields.get("attempts", ""),
        reason=letter.fields.get("reason", ""),
    )
