"""
``ngcp-task send``: one request, and every answer as it comes.
"""

from __future__ import annotations

import sys
import uuid
from typing import Any

import click

from ..client import TIMEOUT, ClientError
from ..errors import MessageError
from ..messages import decode
from .link import EXIT, EXIT_INTERRUPTED, fail, link_options, open_client
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
@link_options
def send(
    task: str, dst: str, data: str | None, timeout: float, follow: bool, result: bool,
    form: str | None, **link: str | None,
) -> None:  # fmt: skip
    """Run TASK on the nodes that DST selects.

    \b
    ngcp-task send ping --dst prx01a
    ngcp-task send disk_usage --follow
    ngcp-task send kam_lb_security_ban_dump --dst '*|state=active;role=proxy' \\
        --data '{"extra_args": "ipban"}'
    """
    arguments = _read_data(data)
    options = {"stream": follow or None, "result": result or None}
    options = {name: wish for name, wish in options.items() if wish}
    follower, ref = Follower(), str(uuid.uuid4())
    client = open_client(link, task)
    with client:
        try:
            answer = client.send(
                task, dst=dst, data=arguments, timeout=timeout, options=options, ref=ref,
                on_response=None if form else follower.show,
            )  # fmt: skip
        except ClientError as exc:
            fail(exc)
        except KeyboardInterrupt:
            click.echo(f"\nngcp-task: what has begun goes on; ngcp-task cancel {ref}", err=True)
            sys.exit(EXIT_INTERRUPTED)
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
