import pytest
from hypothesis import given
from hypothesis import strategies as st

from ngcp_task_agent.errors import BrokerError
from ngcp_task_agent.placeholders import Template

DATA = {"host": "sp1", "port": 5060, "on": True, "hosts": [{"name": "a"}, {"name": "b"}], "n": None}


@pytest.mark.parametrize(
    ("text", "filled"),
    [
        ("{data.host}", "sp1"),
        ("--host={data.host}:{data.port}", "--host=sp1:5060"),
        ("{data.hosts.1.name}{data.on}", "btrue"),
        ("{{data.host}}", "{data.host}"),
        (
            "{}{host}{data}{data.}{ data.host }${x}%s{{",
            "{}{host}{data}{data.}{ data.host }${x}%s{{",
        ),
        ("", ""),
    ],
)
def test_a_placeholder_stands_for_a_value_and_any_other_brace_for_itself(text, filled):
    """Administrators write braces for other purposes, too."""
    assert Template(text).fill(DATA) == filled


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("nowhere", "nothing"),
        ("host.name", "nothing"),
        ("hosts.2.name", "nothing"),
        ("hosts.name", "nothing"),
        ("n", "nothing"),
        ("hosts", "an array"),
        ("hosts.0", "an object"),
    ],
)
def test_what_is_no_word_is_refused(path, found):
    """With the path."""
    with pytest.raises(BrokerError, match=f"^data.{path}: found {found}; expected a text"):
        Template(f"{{data.{path}}}").fill(DATA)


@given(st.text(st.characters(codec=None)), st.text(st.characters(codec=None)))
def test_a_value_is_in_the_word_as_it_is_or_it_is_refused(first, second):
    """Also one that looks like a placeholder itself."""
    try:
        filled = Template("<{data.a}|{data.b}>").fill({"a": first, "b": second})
    except BrokerError:
        assert "\0" in first + second
    else:
        assert "\0" not in first + second
        assert filled == f"<{first}|{second}>"
