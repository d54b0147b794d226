"""
``ngcp-task send``: one request, and every answer as it comes.
"""

from __future__ import annotations

import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import click

from ..client import TIMEOUT, Posted, Result
from ..errors import MessageError
from ..messages import decode, encode
from . import words
from .link import EXIT, EXIT_INTERRUPTED, failing, link_options, open_client, posting
from .show import Follower, as_json, show_data, show_missing


@click.command()
@click.argument("task")
@click.option("--dst", default="*", show_default=True, metavar="DST", help="Which nodes.")
@click.option(
    "--data", metavar="JSON", help="The task's arguments; @FILE reads a file, - standard input."
)
@click.option("--timeout", default=TIMEOUT, show_default=True, type=click.FloatRange(0.01),
              metavar="SECONDS", help="For everything.")  # fmt: skip
@click.option("--follow", "-f", is_flag=True, help="Show output while it comes.")
@click.option("--result", is_flag=True, help="With --json: how the process ended.")
@click.option("--json", "form", flag_value="json", help="One JSON document at the end.")
@click.option("--quiet", "-q", "form", flag_value="quiet", help="Only the results.")
@click.option("--ttl", type=click.FloatRange(0.001), metavar="SECONDS",
              help="Not to be started later than this, by the bus's clock.")  # fmt: skip
@click.option("--control-stream", type=words.key, metavar="KEY",
              help="Post it there; default the task's in --config-dir.")  # fmt: skip
@click.option("--feedback-stream", type=words.key, metavar="KEY", help="Keep the answers there.")
@click.option("--durable", is_flag=True, help="Keep the answers, in a stream of their own.")
@click.option("--pool", is_flag=True,
              help="One node of several runs it; its end is the end.")  # fmt: skip
@click.option("--no-wait", is_flag=True, help="Print the uuid and the feedback stream, and leave.")
@link_options
def send(
    task: str, dst: str, data: str | None, timeout: float, follow: bool, result: bool,
    form: str | None, ttl: float | None, control_stream: str | None,
    feedback_stream: str | None, durable: bool, pool: bool, no_wait: bool, **link: str | None,
) -> None:  # fmt: skip
    """Run TASK on the nodes that DST selects.

    \b
    ngcp-task send ping --dst prx01a
    ngcp-task send disk_usage --follow
    ngcp-task send kam_lb_security_ban_dump --dst '*|state=active;role=proxy' \\
        --data '{"extra_args": "ipban"}'
    ngcp-task send backup --control-stream backups --ttl 3600 --no-wait
    """
    options = {"stream": follow or None, "result": result or None}
    ref = str(uuid.uuid4())
    found, in_pool = posting(link, task)
    stream = control_stream or found
    request: dict[str, Any] = {
        "dst": dst,
        "data": _read_data(data),
        "options": {name: wish for name, wish in options.items() if wish},
        "ttl": ttl,
        "control_stream": stream,
        "feedback_stream": feedback_stream or durable or no_wait or bool(stream),
        "pool": pool or in_pool,
        "ref": ref,
    }
    with open_client(link, task, stream) as client, guarded(ref):
        if no_wait:
            _show_posted(client.post(task, **request), form)
            return
        answer = client.send(
            task, timeout=timeout, on_response=None if form else Follower().show, **request
        )
    finish(answer, form, task, dst)


def _show_posted(posted: Posted, form: str | None) -> None:
    if form == "json":
        fields = {
            "uuid": posted.uuid,
            "feedback_stream": posted.feedback_stream,
            "cursor": posted.cursor,
            "pool": posted.pool,
        }
        click.echo(encode(fields).decode())
    else:
        click.echo(f"{posted.uuid} {posted.feedback_stream}")


@contextmanager
def guarded(ref: str) -> Iterator[None]:
    """Leave with the right words where the bus is away, or somebody interrupts."""
    try:
        with failing():
            yield
    except KeyboardInterrupt:
        click.echo(f"\nngcp-task: what has begun goes on; ngcp-task cancel {ref}", err=True)
        sys.exit(EXIT_INTERRUPTED)


def finish(answer: Result, form: str | None, task: str = "", dst: str = "") -> NoReturn:
    """Show what is left to be shown, and leave with the status that says it."""
    if form == "json":
        click.echo(as_json(answer, task, dst))
    elif form == "quiet":
        for run in answer.runs:
            show_data(run.data)
    if form != "json":
        show_missing(answer, reasons=form == "quiet")
    sys.exit(EXIT[answer.outcome])


def _read_data(text: str | None) -> Any:
    if text is None:
        return None
    try:
        if text == "-":
            text = sys.stdin.read()
        elif text.startswith("@"):
            with open(text[1:], encoding="utf-8") as file:
                text = file.read()
        return decode(text)
    except OSError as exc:
        raise click.BadParameter(f"{text}: {exc.strerror}", param_hint="--data") from None
    except (MessageError, ValueError) as exc:
        raise click.BadParameter(f"{text[:60]!r} is {exc}", param_hint="--data") from None
