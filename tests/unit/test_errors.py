import pytest

from ngcp_task_agent import errors
from ngcp_task_agent.errors import ConfigError, Problem, TaskAgentError

RUN = Problem("tasks/ping.yml", "broker_options.run", "nothing", "the program to run")
WHOLE = Problem("tasks/pong.yml", "", "line 3: a tab", "valid YAML")
BRANCHES = [
    thing
    for thing in vars(errors).values()
    if isinstance(thing, type) and issubclass(thing, Exception) and thing is not TaskAgentError
]


def test_a_problem_reads_file_key_found_expected():
    """One line that an administrator can act on, and a script can take apart."""
    assert str(RUN) == (
        "tasks/ping.yml: broker_options.run: found nothing; expected the program to run"
    )


def test_a_problem_of_the_whole_file_names_no_key():
    """An empty key must not leave an empty field behind."""
    assert str(WHOLE) == "tasks/pong.yml: found line 3: a tab; expected valid YAML"


def test_a_config_error_tells_every_problem_in_order():
    """One look at it names all mistakes."""
    error = ConfigError([RUN, WHOLE])

    assert error.problems == (RUN, WHOLE)
    assert str(error).splitlines() == [str(RUN), str(WHOLE)]


@pytest.mark.parametrize("branch", BRANCHES, ids=lambda branch: branch.__name__)
def test_each_branch_stands_in_the_tree_at_the_head(branch):
    """The consequence of each error is written down where it is defined."""
    assert issubclass(branch, TaskAgentError)
    assert f"- {branch.__name__} " in errors.__doc__
