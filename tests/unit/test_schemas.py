import json
import subprocess
import sys
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ngcp_task_agent import schemas
from ngcp_task_agent.options import Options
from ngcp_task_agent.schemas import LENGTH, MAX_VALUES, read_schema

HOST = {"type": "string", "maxLength": 30, "pattern": "^[a-z0-9.]+$"}
NAMED = {"type": "object", "properties": {"name": {"type": "string", "format": "ipv4"}}}
FULL = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "title": "Where to look",
    "type": "object",
    "properties": {
        "host": HOST,
        "port": {"type": "integer", "minimum": 1, "maximum": 65535, "default": 5060},
        "hosts": {"type": "array", "items": {"$ref": "#/$defs/named"}, "uniqueItems": True},
        "password": {"type": "string", "minLength": 8, "writeOnly": True},
        "mode": {"enum": ["fast", "slow"]},
        "either": {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]},
        "never": False,
    },
    "required": ["host"],
    "additionalProperties": False,
    "$defs": {"named": NAMED},
}
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


def read(given):
    """The schema, and problems and warnings as people see them."""
    options = Options({"arguments": given}, "t.yml")
    schema = read_schema(options, "arguments")
    options.close()
    return schema, list(map(str, options.problems)), list(map(str, options.notes))


def schema(given):
    made, problems, notes = read(given)
    assert (problems, notes) == ([], [])
    return made


# The file


def test_no_schema_is_no_schema():
    """Nothing is checked then, and nothing is loaded."""
    assert read(None) == (None, [], [])


def test_without_a_schema_the_library_is_not_even_loaded():
    """It would make every daemon slower to start, and larger; with one, it is."""
    code = (
        "import sys\n"
        "from ngcp_task_agent import app, daemon\n"
        "from ngcp_task_agent.options import Options\n"
        "from ngcp_task_agent.schemas import read_schema\n"
        "for given in (None, {}):\n"
        "    read_schema(Options({'arguments': given}, 't.yml'), 'arguments')\n"
        "    print(*{'jsonschema', 'referencing', 'attrs', 'rpds'} & sys.modules.keys())\n"
    )

    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    before, after = said.stdout.splitlines()
    assert before == ""
    assert "jsonschema" in after


@pytest.mark.parametrize(
    ("wrong", "problem"),
    [
        (7, "arguments: found 7; expected a JSON Schema: a mapping"),
        (True, "arguments: found yes; expected a JSON Schema: a mapping"),
        (["host"], "arguments: found a list; expected a JSON Schema: a mapping"),
        ({"properties": {"host": {"type": "strnig"}}},
         "arguments.properties.host.type: found 'strnig'; expected one of array, boolean, "),
        ({"properties": {"host": "string"}},
         "arguments.properties.host: found 'string'; expected a schema: a mapping"),
        ({"properties": {"host": {"pattern": "["}}},
         "arguments.properties.host.pattern: found '['; expected a regular expression"),
        ({"patternProperties": {"[": {}}},
         "arguments.patternProperties: found '['; expected a regular expression"),
        ({"allOf": [{}, {"minLength": -1}]},
         "arguments.allOf.1.minLength: found -1; expected minimum: 0"),
        ({"required": "host"}, "arguments.required: found 'host'; expected type: array"),
        ({"maximum": 2**70}, "arguments: found not JSON: Integer exceeds 64-bit range; expected"),
        ({"$schema": "http://json-schema.org/draft-07/schema#"},
         "arguments.$schema: found 'http://json-schema.org/draft-07/schema#'; expected https://"),
        ({"$defs": {"a": {"$schema": "https://json-schema.org/draft/2020-12/schema"}}},
         "arguments.$defs.a.$schema: found another draft inside; expected $schema at the top"),
        ({"$ref": "#/$defs/host"}, "arguments.$ref: found '#/$defs/host'; expected a place in"),
        ({"properties": {"a": {"$ref": "#/title"}}, "title": "x"},
         "arguments.properties.a.$ref: found '#/title'; expected a place in"),
        ({"items": {"$ref": "#/x-own"}, "x-own": {"type": 7}},
         "arguments.items.$ref: found '#/x-own'; expected a place in"),
        ({"properties": {"a": {"$dynamicRef": "#nowhere"}}},
         "arguments.properties.a.$dynamicRef: found '#nowhere'; expected a place in"),
        ({"$ref": "http://["}, "arguments.$ref: found 'http://['; expected a place in"),
        ({"$id": "http://["}, "arguments: found what cannot be read ("),
        ({"$ref": "#"}, "arguments: found a $ref that leads to itself; expected a schema that"),
        ({"properties": {"a": {"$ref": "#/$defs/a"}},
          "$defs": {"a": {"anyOf": [{"not": {"$ref": "#/$defs/a"}}, {"type": "null"}]}}},
         "arguments: found a $ref that leads to itself; expected a schema that"),
    ],
    ids=str,
)  # fmt: skip
def test_a_mistake_in_a_schema_is_told_with_its_path(wrong, problem):
    """When the file is loaded: a request finds a schema that works, or none."""
    made, problems, _ = read(wrong)

    assert made is None
    assert len(problems) == 1
    assert problems[0].startswith(f"t.yml: {problem}")


def test_every_mistake_in_a_schema_is_told_at_once():
    """One run of `check` is enough."""
    wrong = {"properties": {"a": {"type": "txt"}, "b": {"minimum": "1"}}, "required": 1}

    assert sorted(problem.split(": ")[1] for problem in read(wrong)[1]) == [
        "arguments.properties.a.type", "arguments.properties.b.minimum", "arguments.required",
    ]  # fmt: skip


@pytest.mark.parametrize("where", ["http://127.0.0.1:9/s.json", "file:///etc/passwd", "other.json"])
def test_a_reference_to_elsewhere_is_a_mistake_and_is_never_followed(where, monkeypatch):
    """Who can answer on the network would say what a task takes."""
    monkeypatch.setattr("urllib.request.urlopen", lambda *_: pytest.fail("fetched"))
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("fetched"))

    for wrong in ({"$ref": where}, {"$id": "http://127.0.0.1:9/", "items": {"$ref": where}}):
        made, problems, _ = read(wrong)
        assert made is None
        assert "nothing is fetched" in problems[0]


def test_a_schema_may_refer_to_its_own_parts():
    """By place, by anchor, by the `$id` of a part, and to itself further down."""
    given = {
        "$id": "https://example.com/a",
        "$defs": {
            "part": {"$id": "part", "$anchor": "n", "$ref": "#/$defs/x",
                     "$defs": {"x": {"type": "integer"}}},
        },
        "properties": {"a": {"$ref": "part#n"}, "b": {"$ref": "#"}, "c": {"$ref": "/part"}},
    }  # fmt: skip

    assert schema(given).fault({"a": 1, "b": {"a": 1}, "c": 2}) == ""
    assert schema(given).fault({"b": {"a": "x"}}).startswith("data.b.a: found 'x'")


@pytest.mark.parametrize("word", ["items", "allOf", "properties"])
def test_a_schema_nested_deeply_is_refused(word):
    """The library would use up the stack, and takes no notice of who else needs the thread."""
    wraps = {"allOf": lambda one: [one], "items": lambda one: one, "properties": lambda x: {"a": x}}
    given, levels = {}, 0
    while not (problems := read(given)[1]) and levels < 100:
        given, levels = {word: wraps[word](given)}, levels + 1

    assert problems == ["t.yml: arguments: found more than 60 levels; expected fewer"]
    assert 28 < levels < 62


def test_a_schema_that_holds_itself_is_no_json():
    """YAML can write such a thing."""
    given = {"type": "object"}
    given["properties"] = {"a": given}

    assert read(given)[1] == ["t.yml: arguments: found not JSON: Recursion limit reached; expected "
                              "values that JSON has a form for"]  # fmt: skip


@pytest.mark.parametrize(
    ("doubtful", "note"),
    [
        ({"format": "ipv5"}, "arguments.format: found 'ipv5'; expected one that is checked here: "),
        ({"properties": {"a": {"fromat": "ipv4"}}},
         "arguments.properties.a.fromat: found an unknown keyword; expected 'format'"),
        ({"items": {"length": 3}}, "arguments.items.length: found an unknown keyword; expected "),
    ],
)  # fmt: skip
def test_what_would_check_nothing_is_warned_of(doubtful, note):
    """The draft allows it; hardly anybody means it."""
    made, problems, notes = read(doubtful)

    assert made is not None
    assert problems == []
    assert len(notes) == 1
    assert notes[0].startswith(f"t.yml: {note}")


def test_what_a_form_needs_is_no_doubt():
    """Annotations of the draft, and words of one's own."""
    assert schema({"title": "a", "description": "b", "examples": [], "x-order": 1})


# The data


@pytest.mark.parametrize(
    ("data", "fault"),
    [
        (None, "data.host: found nothing; expected a value (required)"),
        ({}, "data.host: found nothing; expected a value (required)"),
        ("null", "data.host: found nothing; expected a value (required)"),
        ({"host": 7}, "data.host: found 7; expected type: string"),
        ({"host": None}, "data.host: found null; expected type: string"),
        ('{"host": true}', "data.host: found true; expected type: string"),
        ({"host": "a b"}, "data.host: found 'a b'; expected pattern: ^[a-z0-9.]+$"),
        ({"host": "a\n"}, "data.host: found 'a\\n'; expected pattern: ^[a-z0-9.]+$"),
        ({"host": "a", "port": 0}, "data.port: found 0; expected minimum: 1"),
        ({"host": "a", "port": True}, "data.port: found true; expected type: integer"),
        ({"host": "a", "mode": "x"}, "data.mode: found 'x'; expected enum: [\"fast\",\"slow\"]"),
        ({"host": "a", "hosts": [{"name": "1.2.3.4"}, {"name": "x"}]},
         "data.hosts.1.name: found 'x'; expected format: ipv4"),
        ({"host": "a", "hosts": [{}, {}]},
         "data.hosts: found an array; expected uniqueItems: true"),
        ({"host": "a", "password": "secret"},
         "data.password: found a string; expected minLength: 8"),
        ({"host": "a", "hots": 1},
         "data.hots: found an unknown name; expected one of host, port, hosts, password, mode, "
         "either, never"),
        ({"host": "a", "a b\n": 1}, "data.'a b\\n': found an unknown name; expected one of host, "
         "port, hosts, password, mode, either, never"),
        ("host", "data: found a string that is not JSON; expected JSON"),
        ("", "data: found a string that is not JSON; expected JSON"),
        ("[1]", "data: found an array; expected type: object"),
        (7, "data: found 7; expected type: object"),
    ],
    ids=str,
)  # fmt: skip
def test_what_does_not_fit_is_told_with_its_path(data, fault):
    """Found and expected, in the words of the schema."""
    assert schema(FULL).fault(data) == fault


def test_what_must_not_be_there_is_told():
    """The library does not say where in every version."""
    fault = schema(FULL).fault({"host": "a", "never": 1})

    assert fault.startswith("data")
    assert fault.endswith(": found 1; expected nothing here")


@pytest.mark.parametrize(
    "data",
    [
        {"host": "sp1"},
        '{"host": "sp1", "port": 5060}',
        {"host": "a" * 30, "mode": "fast", "either": ["x"], "password": "12345678"},
        {"host": "a", "hosts": [{"name": "1.2.3.4"}, {"name": "1.2.3.5"}]},
    ],
    ids=str,
)
def test_what_fits_has_no_fault(data):
    """As an object and as a string that holds one."""
    assert schema(FULL).fault(data) == ""


@pytest.mark.parametrize("data", [None, {}, "null", "{}"])
def test_no_data_is_an_empty_object(data):
    """Clients send either."""
    assert schema({"properties": {"a": {}}}).fault(data) == ""
    assert schema({"type": "object", "maxProperties": 0}).fault(data) == ""


def test_no_data_is_null_where_the_schema_says_so():
    """Else `type: null` could never be met."""
    assert schema({"type": "null"}).fault(None) == ""
    assert schema({"type": ["null", "object"], "required": ["a"]}).fault(None) == ""


@pytest.mark.parametrize("data", [7, [], "7", "[]", '"text"', True])
def test_arguments_are_an_object_unless_the_schema_says_otherwise(data):
    """`required` says nothing about a number, and a broker would get no arguments at all."""
    assert "expected an object" in schema({"required": ["host"]}).fault(data)
    assert schema({"type": ["array", "integer", "string", "boolean"]}).fault(data) == ""


def test_the_most_telling_mistake_comes_first():
    """Not the one deep inside."""
    fault = schema(FULL).fault({"host": "a", "hosts": [{"name": 1}] * 2, "port": "x"})

    assert fault.startswith(("data.port: ", "data.hosts: "))


def test_a_dollar_is_the_very_end():
    """In Python's own language it also matches before a line end; inside a class, and
    behind a backslash, it is a character."""
    patterns = {"^a$": "a", "^[$]$": "$", r"^\$$": "$", "^[]$]$": "]", "^(a|b$)$": "b"}
    for pattern, text in patterns.items():
        made = schema({"properties": {"a": {"pattern": pattern}}})

        assert made.fault({"a": text}) == ""
        assert made.fault({"a": text + "\n"}) != ""


def test_unique_items_are_equal_as_json_values_are():
    """true is not 1, but 1.0 is."""
    made = schema({"type": "array", "uniqueItems": True})

    for different in ([1, True], [0, False, None, "", [], {}], [[1], [True]], [{"a": 1}, {"b": 1}]):
        assert made.fault(different) == ""
    for same in ([1, 1.0], [[1], [1]], [{"a": 1, "b": 2}, {"b": 2, "a": 1}]):
        assert made.fault(same) != ""


# Strangers


def deep(levels, key=None):
    value = {}
    for _ in range(levels):
        value = [value] if key is None else {key: value}
    return value


@pytest.mark.parametrize(
    ("given", "data"),
    [
        ({"properties": {"a": {"$ref": "#"}}}, deep(900, "a")),
        ({"properties": {"a": {"uniqueItems": True, "enum": [[[]]]}}}, {"a": deep(900)}),
        ({"properties": {"a": {"items": {"$ref": "#/properties/a"}}}}, {"a": deep(1000)}),
        ({"properties": {"a": {"pattern": "^(a+)+$", "maxLength": 20}}}, {"a": "a" * 5000 + "!"}),
        ({"properties": {"a": {"uniqueItems": True}}}, {"a": [{"n": n} for n in range(4900)] * 2}),
        ({"properties": {"a": {"items": {"type": "string"}}}}, {"a": list(range(MAX_VALUES - 5))}),
        ({"properties": {"a": {"items": {"type": "string"}}}}, {"a": [0] * 500_000}),
        ({"properties": {"a": {"type": "integer"}}}, {"a": "x" * 1_000_000}),
        ({"additionalProperties": {"type": "integer"}}, {"x" * 1_000_000: ""}),
        ({"properties": {"a": {"multipleOf": 1e-300}}}, {"a": 1e300}),
        ({"properties": {"a": {"enum": ["x" * 1000] * 1000}}}, {"a": 1}),
        ({"properties": {"a": {"format": "ipv4"}}}, {"a": "\ud800"}),
        ({"additionalProperties": False}, {"\ud800\u202e\n\0": 1}),
    ],
    ids=range(13),
)  # fmt: skip
def test_hostile_data_is_a_fault_of_one_short_line_at_once(given, data):
    """It is checked in the event loop, and the text goes into an answer and the log."""
    made = schema(given)
    began = time.process_time()

    fault = made.fault(data)

    assert time.process_time() - began < 1
    assert fault.startswith("data")
    assert len(fault) <= LENGTH
    assert fault.isprintable()
    assert fault.encode()


def test_data_that_breaks_the_library_is_a_fault():
    """Not to know whether it fits is no reason to let it in."""
    made = schema({"properties": {"a": {}}})
    made._validator = None

    assert made.fault({"a": 1}).startswith("data: found what cannot be checked (AttributeError: ")


@given(JSON)
def test_any_data_fits_or_has_a_fault(data):
    """Never an exception; and nothing that is wrong is let through."""
    one_line = schema(FULL).fault(data)

    assert one_line == "" or (one_line.isprintable() and len(one_line) <= LENGTH)
    if not (isinstance(data, dict) and "host" in data):
        assert one_line
    untyped = schema({}).fault(data)
    assert untyped.isprintable()
    assert len(untyped) <= LENGTH


@given(st.dictionaries(st.sampled_from(["host", "port"]), JSON))
def test_the_same_data_as_text_has_the_same_fault(data):
    """Clients in the field send a string that holds JSON."""
    try:
        text = schemas.encode(data).decode()
    except schemas.MessageError:  # what has no form in JSON does not come over the wire
        return
    made = schema(FULL)

    assert made.fault(text) == made.fault(json.loads(text))


def test_nothing_is_fetched_even_by_a_schema_that_nobody_has_checked(monkeypatch):
    """The library would, left to itself."""
    monkeypatch.setattr("urllib.request.urlopen", lambda *_: pytest.fail("fetched"))
    made = schemas.Schema({"properties": {"a": {"$ref": "http://127.0.0.1:9/"}}})

    assert "cannot be checked" in made.fault({"a": 1})


@pytest.mark.parametrize("data", [[0] * MAX_VALUES, [[0] * 100] * 100, [{"a": 0}] * 5000])
def test_data_of_very_many_values_is_not_looked_at(data):
    """Each of them costs some microseconds, and everybody waits meanwhile."""
    made = schema({"type": ["object", "array"]})

    assert made.fault(data) == f"data: found more than {MAX_VALUES} values; expected fewer"
    assert made.fault({"a": [0] * (MAX_VALUES - 2)}) == ""


def test_of_many_mistakes_the_first_ones_are_enough(monkeypatch):
    """Each is made with some effort, only to be passed over."""
    seen = []
    best = schemas._best
    monkeypatch.setattr(schemas, "_best", lambda errors: seen.extend(errors) or best(errors))

    made = schema({"type": "array", "items": {"type": "string"}})

    assert made.fault([0] * 9000).startswith("data.")
    assert len(seen) == schemas.MAX_FAULTS


@pytest.mark.parametrize("levels", [32, 90, 250, 900])
def test_data_nested_too_deeply_is_told_as_such(levels):
    """It is the client's to mend; the library, with its stack used up, may even panic."""
    made = schema({
        "$ref": "#/$defs/a",
        "$defs": {
            "a": {"oneOf": [{"type": "string"}, {"if": {}, "then": {"allOf": [{"$ref": "#b"}]}}]},
            "b": {"$anchor": "b", "properties": {"a": {"$ref": "#/$defs/a"}}},
        },
    })  # fmt: skip

    assert made.fault(deep(9, "a")) == ""
    assert made.fault(deep(levels, "a")) == "data: found more than 10 levels; expected fewer"
    plain = schema({"properties": {"a": {"$ref": "#"}}})
    assert plain.fault(deep(31, "a")) == ""
    assert plain.fault(deep(levels, "a")) == "data: found more than 32 levels; expected fewer"


def test_what_takes_long_to_check_is_not_checked():
    """In the event loop everybody waits: alternatives, and what was not evaluated yet."""
    data = {f"x{number}": 1 for number in range(1001)}
    for costly in (
        {"oneOf": [{}]},
        {"unevaluatedProperties": False, "patternProperties": {"x": {}}},
    ):
        assert schema(costly).fault(data) == "data: found more than 1000 values; expected fewer"
    reason = "data.a: found 5000 characters; expected at most 4096 (or maxLength: …)"
    assert schema({"properties": {"a": {"pattern": "x"}}}).fault({"a": "x" * 5000}) == reason


def test_a_panic_of_the_library_is_a_fault():
    """It is no Exception, and nobody above expects it."""

    class PanicError(BaseException):
        pass

    class Panics:
        def iter_errors(self, data):
            raise PanicError("__eq__ failed!")

    made = schema({})
    made._validator = Panics()

    assert "found what cannot be checked (PanicError: __eq__ failed!)" in made.fault({})


def test_a_schema_s_own_words_are_printable_in_a_reason():
    """A line end or a change of direction would disturb the log."""
    fault = schema({"properties": {"a": {"enum": ["\u2028\u202e\x1b"]}}}).fault({"a": 1})

    assert fault.isprintable()


def test_a_schema_that_names_its_draft_is_checked_in_the_same_way_further_down():
    """The library chooses a class of its own at each `$schema` that it comes by."""
    given = {
        "$schema": schemas.DRAFT, "type": ["object", "string"], "pattern": "^x$",
        "properties": {"a": {"$ref": "#"}},
    }  # fmt: skip

    assert schema(given).fault({"a": {"a": "x"}}) == ""
    assert schema(given).fault({"a": {"a": "x\n"}}).startswith("data.a.a: ")
