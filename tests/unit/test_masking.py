import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ngcp_task_agent.masking import STARS, Mask, MaskedStream, secrets_in
from ngcp_task_agent.messages import encode

# Few letters, so that secrets overlap, repeat and begin in each other.
secrets = st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=3)
texts = st.text("abc", max_size=24)


@st.composite
def pieces(draw):
    text = draw(texts).encode()
    cuts = sorted(draw(st.lists(st.integers(0, len(text)), max_size=8)))
    return [text[a:b] for a, b in itertools.pairwise([0, *cuts, len(text)])]


def hidden(values, parts):
    stream = MaskedStream(Mask(values))
    return b"".join([*(stream.feed(part) for part in parts), stream.rest()])


def without(values, text):
    """*text* less every character that belongs to a secret, by the plainest rule there is."""
    covered = {
        place
        for value in values
        for start in range(len(text))
        if text.startswith(value, start)
        for place in range(start, start + len(value))
    }
    return "".join(letter for place, letter in enumerate(text) if place not in covered)


@given(secrets, pieces())
def test_what_is_left_holds_nothing_of_a_secret(values, parts):
    """Overlapping secrets are hidden as one, wherever the pieces end."""
    text = b"".join(parts).decode()

    assert hidden(values, parts).decode().replace(STARS, "") == without(values, text)


@given(secrets, pieces())
def test_pieces_make_no_difference(values, parts):
    """A reader sees the same, whether it came at once or letter by letter."""
    assert hidden(values, parts) == hidden(values, [b"".join(parts)])


@given(secrets, pieces())
def test_nothing_is_held_back_without_need(values, parts):
    """Only what could become a secret waits for the next piece."""
    stream = MaskedStream(Mask(values))
    for part in parts:
        stream.feed(part)

    assert any(value.encode().startswith(stream._held) for value in values)


@pytest.mark.parametrize("value", ['qu"ote', "back\\slash", "line\nend", "tab\tulator", "smörgås"])
def test_a_secret_is_found_as_json_and_as_python_writes_it(value):
    """Programs print results as JSON, and errors with repr."""
    mask = Mask([value])

    for text in (value, encode(value).decode()[1:-1], repr(value)[1:-1]):
        assert mask.text(f"<{text}>") == f"<{STARS}>"


def test_a_value_keeps_its_shape():
    """Numbers that show the secret become texts; everything else stays."""
    value = {"a": ["x4711y", 4711, 1.5, True, None], "4711": {"b": "plain"}}

    assert Mask(["4711"]).value(value) == {
        "a": ["x***y", "***", 1.5, True, None], "***": {"b": "plain"},
    }  # fmt: skip


def test_no_secret_costs_nothing():
    """Most tasks have none."""
    assert not Mask([""])
    assert Mask().text("as it is") == "as it is"


def test_what_a_name_stands_for_is_hidden_with_all_in_it():
    """A list of keys is as secret as one key."""
    values = {"data": {"login": {"name": "anna", "keys": ["k1", 2]}}, "TOKEN": "t"}

    assert secrets_in(["data.login.keys", "TOKEN", "NONE"], values) == {"k1", "2", "t"}
    assert secrets_in(["data.login.keys.0"], values) == {"k1"}


def test_a_text_with_lone_surrogates_is_no_bug():
    """Error texts of Python may hold anything."""
    assert Mask(["x"]).text("a\ud800x") == "a\ud800***"
