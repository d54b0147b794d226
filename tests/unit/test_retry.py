import pytest
from hypothesis import given
from hypothesis import strategies as st

from ngcp_task_agent.options import Options
from ngcp_task_agent.retry import CAUSES, NEVER, Retry, read_retry


def read(value):
    options = Options({"retry": value}, "tasks/a.yml")
    return read_retry(options, "retry"), [str(problem) for problem in options.problems]


def test_without_the_key_there_is_one_attempt():
    """At most once is what a task gets that does not ask for more."""
    retry, problems = read(None)

    assert (retry, problems) == (NEVER, [])
    assert not any(retry.wanted(1, cause) for cause in CAUSES)


def test_every_key_is_read():
    """The whole section, as the documentation shows it."""
    retry, problems = read(
        {"attempts": 5, "backoff": {"base": 2, "max": 30, "jitter": 0.1}, "on": ["timeout", "lost"]}
    )

    assert not problems
    assert retry == Retry(5, 2.0, 30.0, 0.1, frozenset({"timeout", "lost"}))
    assert retry.wanted(4, "lost")
    assert not retry.wanted(5, "lost")
    assert not retry.wanted(1, "error")


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ({"attempts": 0}, "retry.attempts"),
        ({"on": ["sometimes"]}, "'sometimes'; expected some of error, timeout, lost, stopped"),
        ({"backoff": {"base": 10, "max": 5}}, "retry.backoff.max"),
        ({"backoff": {"jitter": 2}}, "retry.backoff.jitter"),
        ({"backof": {}}, "retry.backof"),
        (3, "retry"),
    ],
)
def test_a_mistake_is_named(value, said):
    """Where, what was found, what would be right."""
    _, problems = read(value)

    assert any(said in problem for problem in problems), problems


@given(
    st.integers(1, 2000),
    st.floats(0.001, 1000),
    st.floats(1, 100),
    st.floats(0, 1),
    st.floats(0, 1),
)
def test_delays_stay_within_their_bounds(attempt, base, factor, jitter, chance):
    """Never longer than the longest, never shorter than what the jitter leaves."""
    retry = Retry(2000, base, base * factor, jitter)

    delay = retry.delay(attempt, chance)

    assert base * (1 - jitter) * 0.999999 <= delay <= base * factor


def test_delays_double():
    """Until they are long enough."""
    retry = Retry(9, 1.0, 10.0, 0.0)

    assert [retry.delay(n) for n in range(1, 7)] == [1, 2, 4, 8, 10, 10]
