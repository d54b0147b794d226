"""
``ngcp-task collect``: the answers to a request that was sent with --no-wait, or elsewhere.
"""

from __future__ import annotations

import click

from ..client import TIMEOUT
from . import words
from .link import link_options, open_client
from .send import finish, guarded
from .show import Follower


@click.command()
@click.argument("key", type=words.key)
@click.option("--ref", default="", metavar="UUID", help="The request; default the first there.")
@click.option("--cursor", default="0", type=words.cursor, show_default=True, metavar="ID",
              help="Only what came after this entry.")  # fmt: skip
@click.option("--timeout", default=TIMEOUT, show_default=True, type=click.FloatRange(0.01),
              metavar="SECONDS", help="For everything.")  # fmt: skip
@click.option("--pool", is_flag=True, help="One node of several runs it; its end is the end.")
@click.option("--json", "form", flag_value="json", help="One JSON document at the end.")
@click.option("--quiet", "-q", "form", flag_value="quiet", help="Only the results.")
@link_options
def collect(
    key: str, ref: str, cursor: str, timeout: float, pool: bool, form: str | None,
    **link: str | None,
) -> None:  # fmt: skip
    """Show the answers that are kept in the feedback stream KEY, and wait for the rest.

    \b
    ngcp-task send backup --control-stream backups --no-wait
    ngcp-task collect ngcp-task-agent-feedback:18d0f568-4a6c-4775-a8a9-6beb2e0372a8
    """
    with open_client(link) as client, guarded(ref):
        answer = client.collect(
            key, ref=ref, cursor=cursor, timeout=timeout, pool=pool,
            on_response=None if form else Follower().show,
        )  # fmt: skip
    finish(answer, form)
