"""
What a task takes: a JSON Schema for a request's `data`, draft 2020-12.

The only place that knows the library, which is loaded with the first task that has
`arguments`: a daemon without such a task neither waits nor pays for it. Nothing is ever
fetched: a schema stands for itself.
"""

from __future__ import annotations

import difflib
import functools
import graphlib
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from .errors import MessageError
from .messages import decode, encode
from .options import Options, describe

if TYPE_CHECKING:
    from jsonschema import ValidationError
    from jsonschema.protocols import Validator

DRAFT = "https://json-schema.org/draft/2020-12/schema"
# A request is checked in the event loop, where everybody waits for it.
MAX_VALUES = 10_000  # values in one request's data
# The library recurses, some ten calls a level; and where its Rust part finds the stack used
# up, it panics.
MAX_LEVELS = 32  # in one request's data
MAX_PATH = 60  # words of the longest path in a schema
# Where the time grows faster than the data: with its square, or with each level.
_COSTLY = ("unevaluated", "oneOf", "anyOf")
FEW_VALUES = 1000
FEW_LEVELS = 10
MAX_PATTERN = 4096  # characters of a text that is matched, unless `maxLength` allows more
MAX_FAULTS = 20  # mistakes among which the most telling one is looked for
LENGTH = 300  # characters of a reason
_SHOWN = 60  # characters of one value, or name, in it

# Where subschemas stand. The annotations that only people and forms read are the rest
# of what the draft knows beside the keywords that the library has a function for.
_ONE = frozenset((
    "additionalProperties", "contains", "contentSchema", "else", "if", "items", "not",
    "propertyNames", "then", "unevaluatedItems", "unevaluatedProperties",
))  # fmt: skip
_LISTED = frozenset(("allOf", "anyOf", "oneOf", "prefixItems"))
_NAMED = frozenset(("$defs", "definitions", "dependentSchemas", "patternProperties", "properties"))
_ANNOTATIONS = frozenset((
    "$anchor", "$comment", "$dynamicAnchor", "$id", "$schema", "contentEncoding",
    "contentMediaType", "default", "deprecated", "description", "examples", "format",
    "maxContains", "minContains", "readOnly", "title", "writeOnly",
))  # fmt: skip
_REFERENCES = ("$ref", "$dynamicRef")
_TYPES = "array, boolean, integer, null, number, object, string"
# `$` outside of a class; in Python's language, it also matches before a last line end.
_END = re.compile(r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]|(\$)", re.DOTALL)
_PLAIN_NAME = re.compile(r"[\w$@:+-]{1,60}", re.ASCII)


class Schema:
    """What `data` has to be. Made by `read_schema`, which finds the mistakes in it.

    A schema that says no `type` at its top is one for an object, as arguments are: else
    `required` would be no word about a number or a list.

    Args:
        given: As it stands in the file.

    Attributes:
        given: The same.
    """

    __slots__ = ("_any_type", "_limits", "_null", "_validator", "given")

    def __init__(self, given: Mapping[str, Any]) -> None:
        self.given = given
        self._validator = _make_validator(given)
        self._any_type = "type" in given
        words = encode(given)
        costly = any(f'"{word}'.encode() in words for word in _COSTLY)
        self._limits = (FEW_VALUES, FEW_LEVELS) if costly else (MAX_VALUES, MAX_LEVELS)
        self._null = self._validator.is_valid(None) and self._any_type

    def names(self, key: str) -> bool:
        """Whether *key* is among the `properties`."""
        return key in self.given.get("properties", ())

    def fault(self, data: Any, quote: bool = True) -> str:
        """Why *data* does not fit, in one line that names the place; empty if it does.

        Args:
            data: As on the wire: a string holds JSON; nothing is an empty object where
                the schema does not allow null.
            quote: Whether the line may show what was found; else only its kind.
        """
        if isinstance(data, str):
            try:
                data = decode(data)
            except MessageError:
                return "data: found a string that is not JSON; expected JSON"
        try:
            return self._check({} if data is None and not self._null else data, quote)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as exc:  # a panic is no Exception
            # Somebody else's code on a stranger's values; who cannot be checked is not let in.
            return _line((), f"what cannot be checked ({type(exc).__name__}: {exc})", "less")

    def _check(self, data: Any, quote: bool) -> str:
        if not self._any_type and not isinstance(data, dict):
            return _line((), _found(data) if quote else _kind(data), "an object")
        excess = _excess(data, *self._limits)
        if excess:
            return _line((), excess, "fewer")
        errors = list(itertools.islice(self._validator.iter_errors(data), MAX_FAULTS))
        return _line(*_describe(_best(errors), quote)) if errors else ""


def read_schema(options: Options, key: str) -> Schema | None:
    """The schema at *key* of a task file; None where there is none, or a bad one.

    Mistakes, and warnings of what is not checked at all, are noted in *options*.
    """
    options.mark(key)
    given = options.fields.get(key)
    if given is None:
        return None
    try:
        remarks = list(_mistakes(given))
        schema = None if remarks else Schema(given)
        doubts = [] if remarks else list(_doubts(given))
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as exc:  # of the library's, for which there is no list; or a panic
        remarks, schema = [_Remark((), f"what cannot be read ({exc})", "a JSON Schema")], None
    for path, found, expected in remarks:
        options.problem(".".join((key, *path)), found, expected)
    for path, found, expected in doubts if schema else ():
        options.note(".".join((key, *path)), found, expected)
    return schema


class _Remark(NamedTuple):
    path: Sequence[str]
    found: str
    expected: str


def _mistakes(given: Any) -> Iterator[_Remark]:
    """What keeps *given* from being a schema, a remark for each place."""
    if not isinstance(given, dict):
        yield _Remark((), describe(given), "a JSON Schema: a mapping (key: value)")
        return
    try:
        encode(given)
    except MessageError as exc:
        yield _Remark((), str(exc), "values that JSON has a form for")
        return
    if _depth(given) > MAX_PATH:
        yield _Remark((), f"more than {MAX_PATH} levels", "fewer")
        return
    if str(given.get("$schema", DRAFT)).rstrip("#") != DRAFT:
        yield _Remark(("$schema",), describe(given["$schema"]), f"{DRAFT}, or nothing")
        return
    wrong = list(_against_the_draft(given))
    yield from wrong
    if not wrong:
        yield from _bad_references(given)


def _against_the_draft(given: dict[str, Any]) -> Iterator[_Remark]:
    from jsonschema import Draft202012Validator

    # The draft's own schema, which comes with the library.
    draft = Draft202012Validator(
        Draft202012Validator.META_SCHEMA, format_checker=Draft202012Validator.FORMAT_CHECKER
    )
    seen = set()
    for error in draft.iter_errors(given):
        path = tuple(map(str, error.absolute_path))
        if path not in seen:
            seen.add(path)
            yield _Remark(path, describe(error.instance), _expected_by_the_draft(error, path))


def _expected_by_the_draft(error: ValidationError, path: Sequence[str]) -> str:
    if path and path[-1] == "type" and error.validator == "anyOf":
        return f"one of {_TYPES}, or a list of them"
    if error.validator == "format" and error.validator_value == "regex":
        return "a regular expression"
    if error.validator == "type" and error.validator_value == ["object", "boolean"]:
        return "a schema: a mapping, yes or no"
    return f"{error.validator}: {_as_json(error.validator_value)}"


def _bad_references(given: dict[str, Any]) -> Iterator[_Remark]:
    from referencing import Registry
    from referencing.exceptions import Unresolvable
    from referencing.jsonschema import DRAFT202012

    # A schema, and those that are asked about the same value on its behalf.
    asked = {id(schema): {id(one) for one in _beside(schema)} for _, schema in _subschemas(given)}
    registry: Registry[Any] = Registry()  # without a way to fetch anything
    resolvers: dict[tuple[str, ...], Any] = {}
    top = registry.resolver_with_root(DRAFT202012.create_resource(given))
    for path, schema in _subschemas(given):
        # A subschema with an $id is what references below it are relative to.
        above = (resolvers.get(path[:length]) for length in range(len(path) - 1, -1, -1))
        around = next(filter(None, above), top)
        resolvers[path] = around.in_subresource(DRAFT202012.create_resource(schema))
        if path and "$schema" in schema:
            yield _Remark((*path, "$schema"), "another draft inside", "$schema at the top only")
        for word in _REFERENCES:
            if word in schema:
                expected = 'a place in this schema, such as "#/$defs/name"; nothing is fetched'
                try:
                    target = resolvers[path].lookup(schema[word]).contents
                except (Unresolvable, LookupError, ValueError, TypeError):
                    target = None
                if id(target) in asked:
                    asked[id(schema)].add(id(target))
                elif not isinstance(target, bool):
                    yield _Remark((*path, word), describe(schema[word]), expected)
    try:
        graphlib.TopologicalSorter(asked).prepare()
    except graphlib.CycleError:
        yield _Remark((), "a $ref that leads to itself", "a schema that comes to an end")


def _doubts(given: dict[str, Any]) -> Iterator[_Remark]:
    """What the draft allows, and what does nothing."""
    from jsonschema import Draft202012Validator

    formats = _formats().checkers
    known = {*Draft202012Validator.VALIDATORS, *_ONE, *_LISTED, *_NAMED, *_ANNOTATIONS}
    for path, schema in _subschemas(given):
        name = schema.get("format")
        if name is not None and name not in formats:
            expected = "one that is checked here: " + ", ".join(sorted(formats))
            yield _Remark((*path, "format"), describe(name), expected)
        for key in schema.keys() - known:
            if not key.startswith("x-"):
                near = difflib.get_close_matches(key, known, n=1)
                expected = repr(near[0]) if near else "a keyword of JSON Schema, or x-…"
                yield _Remark((*path, key), "an unknown keyword", expected)


def _subschemas(
    schema: dict[str, Any], path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], dict[str, Any]]]:
    """*schema* and all mappings in it that are schemas, each with its place, outer first."""
    yield path, schema
    for key, value in schema.items():
        inner: Iterator[tuple[tuple[str, ...], Any]] = iter(())
        if key in _ONE:
            inner = iter([((*path, key), value)])
        elif key in _LISTED:
            inner = (((*path, key, str(number)), one) for number, one in enumerate(value))
        elif key in _NAMED:
            inner = (((*path, key, name), one) for name, one in value.items())
        for place, one in inner:
            if isinstance(one, dict):
                yield from _subschemas(one, place)


def _beside(schema: Mapping[str, Any]) -> Iterator[Any]:
    """The schemas in *schema* that are about the same value as itself."""
    for key in ("allOf", "anyOf", "oneOf"):
        yield from schema.get(key, ())
    for key in ("if", "then", "else", "not"):
        yield schema.get(key)
    yield from schema.get("dependentSchemas", {}).values()


def _make_validator(given: Mapping[str, Any]) -> Validator:
    from referencing import Registry

    # With a $schema, the library would go on with its own class wherever a $ref
    # leads to the top.
    plain = {key: value for key, value in given.items() if key != "$schema"}
    kind = _validator_class()
    return kind(plain, registry=Registry(), format_checker=_formats())


@functools.cache
def _formats() -> Any:
    """Those that are checked; a stranger's regular expression is not even compiled."""
    from jsonschema import Draft202012Validator, FormatChecker

    checker = FormatChecker(())
    checkers = Draft202012Validator.FORMAT_CHECKER.checkers
    checker.checkers = {name: check for name, check in checkers.items() if name != "regex"}
    return checker


@functools.cache
def _validator_class() -> type[Validator]:
    from jsonschema import Draft202012Validator, validators

    extend: Any = validators.extend
    own = {"pattern": _check_pattern, "uniqueItems": _check_unique}
    kind: type[Validator] = extend(Draft202012Validator, own)
    return kind


def _check_pattern(
    validator: Validator, pattern: str, value: Any, schema: Mapping[str, Any]
) -> Iterator[ValidationError]:
    """`pattern`, where `$` is the end of the text, as the draft has it.

    A text that is too long already is not looked at: the time some patterns take grows
    with any power of it.
    """
    from jsonschema import ValidationError

    if not isinstance(value, str) or len(value) > schema.get("maxLength", len(value)):
        return
    if "maxLength" not in schema and len(value) > MAX_PATTERN:
        yield ValidationError(f"is longer than {MAX_PATTERN}, without a maxLength")
    elif not _compiled(pattern).search(value):
        yield ValidationError(f"does not match {pattern}")


@functools.lru_cache(maxsize=1000)
def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(_END.sub(lambda match: r"\Z" if match[1] else match[0], pattern))


def _check_unique(
    validator: Validator, wanted: bool, value: Any, schema: Mapping[str, Any]
) -> Iterator[ValidationError]:
    """`uniqueItems` in a time that grows with the number of items, not with its square."""
    from jsonschema import ValidationError

    if wanted and isinstance(value, list) and len(set(map(_frozen, value))) < len(value):
        yield ValidationError("has an item twice")


def _frozen(value: Any) -> Any:
    """Something hashable that is equal where JSON values are: true is not 1, but 1.0 is."""
    if isinstance(value, dict):
        return dict, frozenset((key, _frozen(item)) for key, item in value.items())
    if isinstance(value, list):
        return list, tuple(map(_frozen, value))
    return (bool, value) if isinstance(value, bool) else value


def _excess(data: Any, values: int, levels: int) -> str:
    """What there is too much of; empty if *data* is of a size to be checked."""
    count = depth = 0
    for level in _levels(data):
        count, depth = count + len(level), depth + 1
        if count > values:
            return f"more than {values} values"
        if depth > levels:
            return f"more than {levels} levels"
    return ""


def _depth(value: Any) -> int:
    return sum(1 for _ in _levels(value))


def _levels(value: Any) -> Iterator[list[Any]]:
    """The value, the values in it, the values in these, and so on."""
    level = [value]
    while level:
        yield level
        holders = [one for one in level if isinstance(one, dict | list)]
        inner = (one.values() if isinstance(one, dict) else one for one in holders)
        level = list(itertools.chain.from_iterable(inner))


def _best(errors: Sequence[ValidationError]) -> ValidationError:
    from jsonschema.exceptions import best_match

    best = best_match(errors)
    return errors[0] if best is None else best


def _describe(error: ValidationError, quote: bool) -> tuple[Sequence[str | int], str, str]:
    """Where, what was found, what would be right."""
    path, schema = list(error.absolute_path), error.schema
    value: Any = error.instance
    wanted: Any = error.validator_value
    if not isinstance(schema, Mapping):
        return path, _found(value), "nothing here"
    if error.validator == "required":
        missing = next((name for name in wanted if name not in value), "")
        return [*path, missing], "nothing", "a value (required)"
    if error.validator == "additionalProperties" and wanted is False:
        names = schema.get("properties", {})
        patterns = schema.get("patternProperties", {})
        extra = (n for n in value if n not in names and not any(re.search(p, n) for p in patterns))
        expected = "one of " + ", ".join(names) if names else "no names here"
        return [*path, next(extra, "")], "an unknown name", expected
    if error.validator == "pattern" and "maxLength" not in schema and len(value) > MAX_PATTERN:
        return path, f"{len(value)} characters", f"at most {MAX_PATTERN} (or maxLength: …)"
    # What is marked as never shown again is a secret: a reason goes into the log.
    found = _found(value) if quote and not schema.get("writeOnly") else _kind(value)
    return path, found, f"{error.validator}: {_as_json(wanted)}"


def _line(path: Sequence[str | int], found: str, expected: str) -> str:
    where = ".".join(["data", *map(_name, path[:20])])
    text = f"{_cut(where, LENGTH // 2)}: found {found}; expected {expected}"
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return _cut(shown, LENGTH)


def _name(name: str | int) -> str:
    text = str(name)
    return text if _PLAIN_NAME.fullmatch(text) else repr(_cut(text, _SHOWN))


def _found(value: Any) -> str:
    if isinstance(value, str):
        return repr(_cut(value, _SHOWN))
    if isinstance(value, dict | list):
        return _kind(value)
    return _cut(encode(value).decode(), _SHOWN)


def _kind(value: Any) -> str:
    if isinstance(value, str | dict | list):
        kinds = {str: "a string", dict: "an object", list: "an array"}
        return next(kind for type_, kind in kinds.items() if isinstance(value, type_))
    return "a value"


def _as_json(value: Any) -> str:
    text = value if isinstance(value, str) else encode(value).decode()
    return _cut(text, LENGTH // 3)


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"
