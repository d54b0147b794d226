import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ngcp_task_agent import yamlfile


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("0027", "0027"),
        ("0o27", "0o27"),
        ("0x1f", "0x1f"),
        ("1_000", "1_000"),
        ("10:20", "10:20"),
        ("10:20:30", "10:20:30"),
        ("2024-01-01", "2024-01-01"),
        ("2024-01-01 10:20:30", "2024-01-01 10:20:30"),
        ("1e5", "1e5"),
        (".5", ".5"),
        (".nan", ".nan"),
        (".inf", ".inf"),
        ("1.2.3", "1.2.3"),
        ("y", "y"),
        ("n", "n"),
        ("=", "="),
        ("27", 27),
        ("-3", -3),
        ("+3", 3),
        ("0", 0),
        ("9.5", 9.5),
        ("1.5e3", 1500.0),
        ("'27'", "27"),
        ("yes", True),
        ("no", False),
        ("true", True),
        ("Off", False),
        ("~", None),
        ("null", None),
        ("", None),
        ("[a, 1]", ["a", 1]),
    ],
)
def test_a_value_is_what_it_looks_like(written, value):
    """No octal numbers, no base 60, no dates; yes and no as administrators write them."""
    found = yamlfile.load(f"key: {written}\n")["key"]

    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("a: 1\na: 2\n", "line 2, column 1"),
        ("outer:\n  a: 1\n\n  a: 1\n", "line 4, column 3"),
        ("[{a: 1, a: 2}]", "line 1, column 9"),
        ("{a: 1, 'a': 2}", "line 1, column 8"),
        ("{1: 1, '1': 2, a: 1, a: 2}", "line 1, column 8"),
    ],
)
def test_a_key_written_twice_is_an_error(text, where):
    """The library would take the last one, and nobody would notice."""
    with pytest.raises(ValueError, match=rf"^{where}: the key '[a1]' stands here twice$"):
        yamlfile.load(text)


@pytest.mark.parametrize("key", ["on", "no", "1", "0027", "1.5", "~", "2024-01-01", "a b", "'x'"])
def test_a_key_is_always_a_text(key):
    """A variable called ON, a role called 1: names are names."""
    assert yamlfile.load(f"{key}: yes\n") == {key.strip("'"): True}


def test_a_merge_key_may_be_overridden():
    """Overriding is what merging is for, and no duplicate."""
    text = "base: &base {a: 1, b: 2}\nmore:\n  <<: *base\n  a: 3\n"

    assert yamlfile.load(text)["more"] == {"a": 3, "b": 2}


@pytest.mark.parametrize(
    "text",
    ["a: [", "a: b: c", "\tb: 1", "--- a\n--- b", "*nobody", "? [a]\n: b", "{a: 1}: b",
     "a: !!python/object/apply:os.system [id]", "a: \0", "a: " + "9" * 5000],
)  # fmt: skip
def test_what_cannot_be_read_is_a_value_error(text):
    """The caller knows one kind of failure, with a text for people."""
    with pytest.raises(ValueError, match=r"\S"):
        yamlfile.load(text)


@pytest.mark.parametrize(
    "text",
    ["a: !!map [x]", "a: !!set [x]", "a: !!int ''", "a: !!float ''", "a: !!bool maybe",
     "a: !!timestamp soon"],
)  # fmt: skip
def test_a_wrong_tag_is_a_value_error(text):
    """A tag is text in a file like any other, and one broken file must harm no other."""
    with pytest.raises(ValueError, match=r"\S"):
        yamlfile.load(text)


NESTED = """
from ngcp_task_agent import yamlfile
try:
    yamlfile.load("[" * 200_000 + "]" * 200_000)
except ValueError as error:
    print(error)
"""


def test_a_file_nested_too_deeply_is_a_value_error():
    """In a process of its own, which a stack that is used up takes down without a word."""
    nested = subprocess.run([sys.executable, "-c", NESTED], capture_output=True, check=False)

    assert nested.returncode == 0
    assert nested.stdout.strip()


def test_bytes_that_are_no_text_are_a_value_error():
    """Files are read as bytes, whatever is in them."""
    with pytest.raises(ValueError, match=r"\S"):
        yamlfile.load(b"a: \xff\xfe\xfa")


@given(st.text("ab:-[]{}!&*#?|<>'\"\n ,%@`~0\0\x80\ud800", max_size=30))
def test_any_text_is_values_or_a_value_error(text):
    """No other exception gets through, and its text fits into one line of the log."""
    problem = ""
    try:
        yamlfile.load(text)
    except ValueError as error:
        problem = str(error)

    assert "\n" not in problem
