import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ngcp_task_agent.facts import describe
from ngcp_task_agent.nodes.text import parse_assignments, parse_facts

words = st.text("abcxyz019_-.", min_size=1, max_size=6)
facts = st.dictionaries(words, st.frozensets(words, min_size=1, max_size=3), max_size=4)


def values(**facts):
    return {key: frozenset(text.split()) for key, text in facts.items()}


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", {}),
        ("state=active\nrole=lb+proxy\n", values(state="active", role="lb proxy")),
        ("# comment\n\nstate=active # so it is\n", values(state="active")),
        ('state="active"\n', values(state="active")),
        ("role = lb", None),
        ('role="lb + proxy"', values(role="lb proxy")),
        ("role=", values(role="")),
        ("role=lb+", values(role="lb")),
        ('{"state": "active", "role": ["lb", "proxy"]}', values(state="active", role="lb proxy")),
        ('  \n{"state": "active"}', values(state="active")),
        ('{"role": []}', values(role="")),
        ("{}", {}),
    ],
)
def test_facts_are_json_or_lines(text, found):
    """What a program prints, or a file holds."""
    if found is None:
        with pytest.raises(ValueError, match="line 1"):
            parse_facts(text)
    else:
        assert parse_facts(text) == found


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a=b\nc", "line 2: found 'c'; expected key=value"),
        ("=b", "line 1: found '=b'; expected key=value"),
        ("a=b\n\nc='d", "line 3: No closing quotation"),
        ("{", "not JSON"),
        ('{"a": 1}', "a: expected a text or a list of texts"),
        ('{"a": ["b", null]}', "a: expected a text or a list of texts"),
        ('{"a": {"b": "c"}}', "a: expected a text or a list of texts"),
    ],
)
def test_a_mistake_is_a_value_error_that_says_where(text, says):
    """The source goes stale, and the log says why."""
    with pytest.raises(ValueError, match=says):
        parse_facts(text)


@given(facts)
def test_both_forms_say_the_same(facts):
    """And the lines are what the log shows, one filter a line."""
    as_lines = describe(facts).replace(";", "\n")
    as_json = json.dumps({key: sorted(texts) for key, texts in facts.items()})

    assert parse_facts(as_lines) == parse_facts(as_json) == facts


@given(st.text())
def test_any_text_is_facts_or_a_value_error(text):
    """A file on disk may hold anything."""
    try:
        found = parse_facts(text)
    except ValueError:
        return

    assert all(isinstance(texts, frozenset) for texts in found.values())


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("NGCP_TYPE=carrier", {"NGCP_TYPE": "carrier"}),
        ('NGCP_IS_PROXY="yes"', {"NGCP_IS_PROXY": "yes"}),
        ("NGCP_IS_PROXY='yes'", {"NGCP_IS_PROXY": "yes"}),
        ('export NGCP_TYPE="spce"', {"NGCP_TYPE": "spce"}),
        ('A="b c" D=e', {"A": "b c", "D": "e"}),
        ("A=b=c", {"A": "b=c"}),
        ("A=", {"A": ""}),
        ("# A=b", {}),
        ("A=b\nA=c", {"A": "c"}),
    ],
)
def test_assignments_are_read_as_a_shell_would(line, found):
    """Files in /etc/default are shell, maybe quoted; nothing is ever executed."""
    assert parse_assignments(line) == found


@pytest.mark.parametrize("text", ["A=$(id)", "A=`id`", "A=$HOME"])
def test_nothing_is_executed_or_expanded(text):
    """It is text."""
    assert parse_assignments(text) == {"A": text[2:]}
