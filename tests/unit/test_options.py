import shlex

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ngcp_task_agent.options import Options, describe

scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
keys = st.text(max_size=3) | st.integers(0, 3) | st.booleans()
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3),
    max_leaves=6,
)
GETTERS = ["text", "number", "seconds", "integer", "size", "flag", "octal", "words", "names",
           "mapping", "section", "sections"]  # fmt: skip
DEFAULTS = {"number": 1.0, "seconds": 1.0, "integer": 1, "size": 1}


def get(getter, value, *args, **kwargs):
    """What *getter* makes of *value*, and the problems it notes."""
    options = Options({"key": value}, "tasks/ping.yml")
    found = getattr(options, getter)("key", *args, **kwargs)
    return found, [str(problem) for problem in options.problems]


@pytest.mark.parametrize(
    ("getter", "value", "args", "found"),
    [
        ("text", "a b", [], "a b"),
        ("text", "", [], ""),
        ("text", None, ["x"], "x"),
        ("text", 27, [], "27"),
        ("number", None, [2], 2),
        ("number", 9.5, [2], 9.5),
        ("number", 3, [2], 3.0),
        ("seconds", 9.5, [2], 9.5),
        ("seconds", 0.001, [2], 0.001),
        ("integer", None, [2], 2),
        ("integer", 0, [2], 0),
        ("integer", "40", [2], 40),
        ("size", None, [2], 2),
        ("size", 1, [2], 1),
        ("size", "64MiB", [2], 64 << 20),
        ("size", "64 MB", [2], 64 << 20),
        ("size", "4k", [2], 4096),
        ("size", "1G", [2], 1 << 30),
        ("size", "2 TiB", [2], 2 << 40),
        ("size", "10B", [2], 10),
        ("flag", None, [True], True),
        ("flag", True, [], True),
        ("flag", False, [True], False),
        ("octal", None, [0o22], 0o22),
        ("octal", None, [], None),
        ("octal", "0027", [], 0o27),
        ("octal", "0o660", [], 0o660),
        ("octal", 27, [], 0o27),
        ("octal", "0", [], 0),
        ("words", None, [], []),
        ("words", "-h '/a b'", [], ["-h", "/a b"]),
        ("words", ["-h", "'/a b'", 3], [], ["-h", "'/a b'", "3"]),
        ("words", 3, [], ["3"]),
        ("names", None, [["x"]], ["x"]),
        ("names", "a", [], ["a"]),
        ("names", ["a", 1], [], ["a", "1"]),
        ("mapping", None, [], {}),
        ("mapping", {"A": "b", "N": 1}, [], {"A": "b", "N": "1"}),
    ],
)
def test_a_getter_reads(getter, value, args, found):
    """What an administrator may well write."""
    assert get(getter, value, *args) == (found, [])


@pytest.mark.parametrize(
    ("getter", "value", "args", "problem"),
    [
        ("text", [], [], "found a list; expected a text"),
        ("text", True, [], "found yes; expected a text"),
        ("text", 1.5, [], "found 1.5; expected a text"),
        ("text", "a\0", [], "found a NUL character; expected a text without it"),
        ("number", "many", [2], "found 'many'; expected a number from 0 to 1e+09"),
        ("number", True, [2], "found yes; expected a number from 0 to 1e+09"),
        ("number", -1, [2], "found -1; expected a number from 0 to 1e+09"),
        ("seconds", 0, [2], "found 0; expected a number of seconds from 0.001 to 3.1536e+08"),
        ("integer", 1.5, [2], "found 1.5; expected a whole number from 0 to 2147483648"),
        ("integer", -1, [2], "found -1; expected a whole number from 0 to 2147483648"),
        ("integer", False, [2], "found no; expected a whole number from 0 to 2147483648"),
        ("integer", "-4", [2], "found '-4'; expected a whole number from 0 to 2147483648"),
        ("size", "64 XB", [2], "found '64 XB'; expected bytes, at least 1, such as 64MiB"),
        ("size", "1.5M", [2], "found '1.5M'; expected bytes, at least 1, such as 64MiB"),
        ("size", True, [2], "found yes; expected bytes, at least 1, such as 64MiB"),
        ("size", 0, [2], "found 0; expected bytes, at least 1, such as 64MiB"),
        ("flag", "perhaps", [], "found 'perhaps'; expected yes or no"),
        ("flag", 1, [], "found 1; expected yes or no"),
        ("octal", "0028", [], "found '0028'; expected octal digits, such as \"0027\""),
        ("octal", 1.5, [], "found 1.5; expected octal digits, such as \"0027\""),
        ("octal", "-1", [], "found '-1'; expected octal digits, such as \"0027\""),
        ("words", "a 'b", [], "found \"a 'b\"; expected words with paired quotes (No closing "
                              "quotation)"),
        ("words", {"a": 1}, [], "found a mapping; expected a list of words, or one text"),
        ("section", "a", [], "found 'a'; expected a mapping (key: value)"),
        ("sections", "a", [], "found 'a'; expected a list of mappings (- key: value)"),
    ],
)  # fmt: skip
def test_a_mistake_is_noted_where_it_stands(getter, value, args, problem):
    """File, key, what was found, what would be right; and the default goes on."""
    found, problems = get(getter, value, *args)

    assert problems == [f"tasks/ping.yml: key: {problem}"]
    assert isinstance(found, Options) or not found or found == args[0]


@pytest.mark.parametrize(
    ("getter", "value", "where"),
    [
        ("words", ["a", ["b"]], "key.1"),
        ("words", ["a\0b"], "key.0"),
        ("names", ["a", None], "key.1"),
        ("names", True, "key.0"),
        ("mapping", {"A": "b", "N": []}, "key.N"),
        ("sections", [{}, 1], "key.1"),
    ],
)
def test_a_mistake_inside_a_list_or_mapping_names_its_place(getter, value, where):
    """Ten arguments are too many to say only that one is wrong."""
    _, (problem,) = get(getter, value)

    assert problem.startswith(f"tasks/ping.yml: {where}: found ")


def test_a_text_with_nul_is_no_word():
    """No program can be given one; that has to be found when the file is loaded."""
    words, problems = get("words", "a\0b")

    assert words == []
    assert len(problems) == 1


@pytest.mark.parametrize("value", [None, "", []])
def test_a_required_text_says_what_belongs_there(value):
    """Absent, empty or of the wrong kind: the reader learns what to write."""
    _, (problem,) = get("text", value, required="the program to run")

    assert problem.endswith("; expected the program to run")


def test_a_choice_lists_the_choices():
    """As a table in a manual would."""
    _, problems = get("text", "loud", "info", choices=("debug", "info"))

    assert problems == ["tasks/ping.yml: key: found 'loud'; expected one of debug, info"]


def test_limits_are_included():
    """From and to, as the error says it."""
    assert get("integer", 1, 5, minimum=1, maximum=1) == (1, [])
    assert get("number", 1, 5, minimum=1, maximum=1) == (1.0, [])
    assert get("size", 4, 5, minimum=4) == (4, [])


def test_every_mistake_is_collected():
    """One look at a file names all its mistakes, in sections too."""
    fields = {"run": 1.5, "log": {"level": True, "inner": [{"a": 1}, {"a": []}]}, "extra": 1}
    options = Options(fields, "agent.yml")

    options.text("run")
    log = options.section("log")
    log.text("level")
    for inner in log.sections("inner"):
        inner.text("a")
    options.close()

    assert [problem.key for problem in options.problems] == [
        "run", "log.level", "log.inner.1.a", "extra",
    ]  # fmt: skip


def test_an_unknown_key_suggests_the_nearest_known_one():
    """Most unknown keys are known ones, misspelt."""
    options = Options({"max_runing": 3}, "tasks/ping.yml", prefix="limits.")
    options.integer("max_running", 1)
    options.integer("max_queued", 1)

    options.close()

    assert list(map(str, options.problems)) == [
        "tasks/ping.yml: limits.max_runing: found an unknown key; expected 'max_running'"
    ]


def test_an_unknown_key_like_no_other_lists_the_known_ones():
    """Nothing near: then all there is."""
    options = Options({"colour": 3}, "tasks/ping.yml")
    options.text("run")
    options.mark("args")

    (problem,) = options.unknown()

    assert str(problem) == "tasks/ping.yml: colour: found an unknown key; expected one of args, run"


def test_a_known_key_is_known_even_if_it_is_wrong():
    """One mistake, one line."""
    options = Options({"run": [], "args": {}}, "tasks/ping.yml")
    options.text("run")
    options.words("args")

    options.close()

    assert len(options.problems) == 2


def test_in_asks_for_a_value():
    """`key:` with nothing behind it is the same as no key."""
    assert "a" in Options({"a": False}, "f")
    assert "a" not in Options({"a": None}, "f")
    assert "a" not in Options({}, "f")


@given(values)
def test_no_value_breaks_a_getter(value):
    """A file is taken apart to its end whatever stands in it."""
    for getter in GETTERS:
        args = [DEFAULTS[getter]] if getter in DEFAULTS else []
        found, problems = get(getter, value, *args)

        assert all(problem.startswith("tasks/ping.yml: key") for problem in problems)
        assert problems or value is None or found is not None


@pytest.mark.parametrize("key", [1, True, 1.5])
def test_a_key_need_not_be_a_text(key):
    """`ON: 1` in YAML is the key True; that is a mistake, or a name, but no crash."""
    mapping, _ = get("mapping", {key: "x"})
    _, problems = get("mapping", {key: []})

    assert [type(name) for name in mapping] in ([], [str])
    assert problems


@given(st.lists(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))))
def test_words_are_split_as_a_shell_splits_them(words):
    """What shlex joins comes back word by word; a list is taken as it is."""
    assert get("words", shlex.join(words)) == (words, [])
    assert get("words", words) == (words, [])


@given(st.integers(0, 0o7777))
def test_octal_digits_are_read_in_any_form(mode):
    """With and without the leading zero, and as the number that YAML makes of it."""
    forms = [f"{mode:o}", f"0{mode:o}", f"{mode:04o}", int(f"{mode:o}")]

    assert [get("octal", form) for form in forms] == [(mode, [])] * len(forms)


@given(st.integers(1, 1 << 20), st.sampled_from("KMGT"), st.sampled_from(["", "B", "iB"]))
def test_units_are_powers_of_1024(number, unit, ending):
    """Whatever their spelling."""
    factor = 1024 ** ("KMGT".index(unit) + 1)

    assert get("size", f"{number}{unit}{ending}", 1) == (number * factor, [])
    assert get("size", f"{number} {unit}{ending}".lower(), 1) == (number * factor, [])


@given(values)
def test_a_value_is_described_shortly(value):
    """In one line of the log."""
    text = describe(value)

    assert text
    assert "\n" not in text
    assert isinstance(value, int | float) or len(text) < 400
