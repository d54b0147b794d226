"""
``ngcp-task send``: one request, and every answer as it comes.
"""

from __future__ import annotations

import sys
from typing import Any

import click

from ..client import TIMEOUT, ClientError
from ..errors import MessageError
from ..messages import decode
from .link import EXIT, fail, link_options, open_client
from .show import as_json, show_data, show_missing, show_response


@click.command()
@click.argument("task")
@click.option("--dst", default="*", show_default=True, metavar="DST", help="Which nodes.")
@click.option(
    "--data", metavar="JSON", help="The task's arguments; @FILE reads a file, - standard input."
)
@click.option("--timeout", default=TIMEOUT, show_default=True, type=click.FloatRange(0.01),
              metavar="SECONDS", help="For everything.")  # fmt: skip
@click.option("--json", "form", flag_value="json", help="One JSON document at the end.")
@click.option("--quiet", "-q", "form", flag_value="quiet", help="Only the results.")
@link_options
def send(
    task: str, dst: str, data: str | None, timeout: float, form: str | None, **link: str | None
) -> None:
    """Run TASK on the nodes that DST selects.

    \b
    ngcp-task send ping --dst prx01a
    ngcp-task send kam_lb_security_ban_dump --dst '*|state=active;role=proxy' \\
        --data '{"extra_args": "ipban"}'
    """
    arguments = _read_data(data)
    client = open_client(link, task)
    with client:
        try:
            result = client.send(
                task, dst=dst, data=arguments, timeout=timeout,
                on_response=None if form else show_response,
            )  # fmt: skip
        except ClientError as exc:
            fail(exc)
    if form == "json":
        click.echo(as_json(result, task, dst))
    elif form == "quiet":
        for run in result.runs:
            show_data(run.data)
    if form != "json":
        show_missing(result)
    sys.exit(EXIT[result.outcome])


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
