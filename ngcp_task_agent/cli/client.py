"""
``ngcp-task``: the client's command line; each verb is a file of its own.
"""

from __future__ import annotations

import click

from .. import __version__
from .cancel import cancel
from .collect import collect
from .dead import dead
from .jobs import jobs
from .link import link_options, remember_link
from .match import match
from .nodes import nodes
from .ping import ping
from .send import send
from .tasks import tasks

EPILOG = """\b
Exit status:
  0  at least one node accepted, and all that accepted are done
  1  a node that accepted failed
  2  wrong usage
  3  no node accepted in time; nothing of the kind is there, or not any more
  4  a node refused, none failed
  5  a node that accepted did not end in time
  6  Redis, or the agent's socket, is not reached
  130  interrupted; what has begun goes on
"""


@click.group(
    epilog=EPILOG,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, prog_name="ngcp-task")
@link_options
@click.pass_context
def command(context: click.Context, /, **link: str | None) -> None:
    """Ask agents to run tasks, and show what comes back.

    The way to the agents is, in this order: --socket, --redis, the variables
    NGCP_TASK_SOCKET and NGCP_TASK_REDIS, backends/redis.yml of --config-dir or else
    backends/redis_stream.yml (for durable requests and dead letters the other way
    round), the agent's socket on this host, and Redis on localhost.
    """
    remember_link(context, link)


for verb in (send, collect, nodes, tasks, match, ping, jobs, cancel, dead):
    command.add_command(verb)


def main() -> None:
    """Entry point of the command."""
    command()
