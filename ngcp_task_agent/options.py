"""
Reading a mapping that an administrator wrote, and collecting every mistake in it.

Each getter returns a usable value or the default, and notes what was wrong; the
caller goes on, so that one look at a file names all its mistakes. Knows nothing of
YAML, files or plug-ins.
"""

from __future__ import annotations

import difflib
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

from .errors import Problem

T = TypeVar("T")

_SIZE = re.compile(r"(\d+)\s*(?:([KMGT])(?:i?B)?|B)?", re.IGNORECASE)
_FACTOR = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_KINDS = {
    type(None): "nothing", bool: "a yes-or-no value", int: "a number", float: "a number",
    str: "a text", list: "a list", dict: "a mapping",
}  # fmt: skip


class Options:
    """A mapping with typed getters.

    Args:
        fields: Keys to plain values, lists and mappings, as YAML gives them.
        file: Named in problems, for example ``tasks/ping.yml``.
        prefix: Dotted path of this mapping inside the file.
        problems: Where mistakes are added; shared by all sections of one file, like
            `notes`, the warnings.
        base: Directory that relative paths in the file are relative to.
    """

    def __init__(
        self,
        fields: Mapping[str, Any],
        file: str,
        prefix: str = "",
        problems: list[Problem] | None = None,
        base: str = "",
    ) -> None:
        self.fields = {str(key): value for key, value in fields.items()}
        self.file = file
        self.base = base
        self.problems: list[Problem] = [] if problems is None else problems
        self.notes: list[Problem] = []
        self._prefix = prefix
        self._adopted: dict[str, str] = {}  # keys that stand elsewhere in the file: their prefix
        self._known: dict[str, None] = {}

    def __contains__(self, key: str) -> bool:
        return self.fields.get(key) is not None

    def problem(self, key: str, found: str, expected: str) -> None:
        """Note a mistake at *key*."""
        self.problems.append(Problem(self.file, self._path(key), found, expected))

    def note(self, key: str, found: str, expected: str) -> None:
        """Note something that does no harm and was hardly meant: a warning."""
        self.notes.append(Problem(self.file, self._path(key), found, expected))

    def adopt(self, key: str, other: Options) -> None:
        """Take *key* from *other*, a section of the same file, if it stands there.

        For what may stand in either; in both it is a mistake.
        """
        if key not in other:
            return
        if key in self:
            self.problem(key, f"it here and as {other._path(key)}", "one of the two")
        other.mark(key)
        self.fields[key] = other.fields[key]
        self._adopted[key] = other._prefix

    def text(
        self,
        key: str,
        default: str = "",
        *,
        required: str = "",
        choices: Sequence[str] = (),
    ) -> str:
        """A string; a number stands for its digits.

        Args:
            key: Where to look.
            default: For an absent key.
            required: What belongs there, as a noun ("the program to run"), if it
                must not be absent or empty.
            choices: The only texts allowed.
        """
        value = self._get(key)
        if isinstance(value, int) and not isinstance(value, bool):
            value = str(value)
        if value is None or (value == "" and required):
            if required:
                self.problem(key, "nothing", required)
            return default
        if not isinstance(value, str):
            return self._wrong(key, value, required or "a text", default)
        if "\0" in value:
            self.problem(key, "a NUL character", required or "a text without it")
            return default
        if choices and value not in choices:
            return self._wrong(key, value, "one of " + ", ".join(choices), default)
        return value

    def number(
        self, key: str, default: float, *, minimum: float = 0, maximum: float = 1e9, unit: str = ""
    ) -> float:
        """A number within limits, both included."""
        value = self._get(key)
        expected = f"a number{' of ' + unit if unit else ''} from {minimum:g} to {maximum:g}"
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, int | float):
            return self._wrong(key, value, expected, default)
        if not minimum <= value <= maximum:
            return self._wrong(key, value, expected, default)
        return float(value)

    def seconds(self, key: str, default: float, *, minimum: float = 0.001) -> float:
        """A duration in seconds, at most ten years."""
        return self.number(key, default, minimum=minimum, maximum=315_360_000, unit="seconds")

    def integer(self, key: str, default: int, *, minimum: int = 0, maximum: int = 2**31) -> int:
        """A whole number within limits, both included."""
        value = self._get(key)
        if value is None:
            return default
        if isinstance(value, str) and value.isdecimal():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int) or not minimum <= value <= maximum:
            return self._wrong(key, value, f"a whole number from {minimum} to {maximum}", default)
        return value

    def size(self, key: str, default: int, *, minimum: int = 1) -> int:
        """Bytes: a whole number, or one with a unit of 1024, such as ``64MiB``."""
        value = self._get(key)
        if value is None:
            return default
        match = _SIZE.fullmatch(str(value).strip()) if not isinstance(value, bool) else None
        number = int(match[1]) * _FACTOR[(match[2] or "").upper()] if match else -1
        if number < minimum:
            return self._wrong(key, value, f"bytes, at least {minimum}, such as 64MiB", default)
        return number

    def flag(self, key: str, default: bool = False) -> bool:
        """yes or no."""
        value = self._get(key)
        if value is None:
            return default
        return value if isinstance(value, bool) else self._wrong(key, value, "yes or no", default)

    def octal(self, key: str, default: int | None = None) -> int | None:
        """Permission bits written in octal digits, such as ``"0660"``."""
        value = self._get(key)
        if value is None:
            return default
        digits = str(value)
        if isinstance(value, bool) or not re.fullmatch(r"0?o?[0-7]{1,4}", digits):
            return self._wrong(key, value, 'octal digits, such as "0027"', default)
        return int(digits.replace("o", ""), 8)

    def words(self, key: str) -> list[str]:
        """Arguments: a list taken as it is, or one text split as a POSIX shell splits it."""
        value = self._get(key)
        if value is None:
            return []
        if isinstance(value, list):
            return self._texts(key, value)
        if isinstance(value, str | int) and not isinstance(value, bool):
            if "\0" in str(value):
                return self._wrong(key, value, "words without NUL characters", [])
            try:
                return shlex.split(str(value))
            except ValueError as exc:
                return self._wrong(key, value, f"words with paired quotes ({exc})", [])
        return self._wrong(key, value, "a list of words, or one text", [])

    def names(self, key: str, default: Sequence[str] = ()) -> list[str]:
        """One text or a list of texts."""
        value = self._get(key)
        if value is None:
            return list(default)
        return self._texts(key, value if isinstance(value, list) else [value])

    def mapping(self, key: str) -> dict[str, str]:
        """Names to texts, for example environment variables."""
        section = self.section(key)
        return {name: section.text(name) for name in section.fields}

    def section(self, key: str) -> Options:
        """A mapping inside this one; an empty one where there is none."""
        value = self._get(key)
        if value is not None and not isinstance(value, dict):
            value = self._wrong(key, value, "a mapping (key: value)", None)
        inner = Options(value or {}, self.file, f"{self._path(key)}.", self.problems, self.base)
        inner.notes = self.notes
        return inner

    def sections(self, key: str) -> list[Options]:
        """A list of mappings."""
        value = self._get(key)
        if value is not None and not isinstance(value, list):
            value = self._wrong(key, value, "a list of mappings (- key: value)", None)
        found = []
        for number, item in enumerate(value or []):
            if isinstance(item, dict):
                where = f"{self._path(key)}.{number}."
                found.append(Options(item, self.file, where, self.problems, self.base))
            else:
                self._wrong(f"{key}.{number}", item, "a mapping (key: value)", None)
        return found

    def mark(self, *keys: str) -> None:
        """Count *keys* as known: they have been read some other way."""
        self._known.update(dict.fromkeys(keys))

    def unknown(self) -> list[Problem]:
        """The keys nobody has asked for, each with the nearest known one."""
        return [
            Problem(self.file, self._path(key), "an unknown key", _suggest(key, self._known))
            for key in map(str, self.fields)
            if key not in self._known
        ]

    def close(self) -> None:
        """Call when all has been read: notes every key nobody asked for."""
        self.problems.extend(self.unknown())

    def _path(self, key: str) -> str:
        return self._adopted.get(key.partition(".")[0], self._prefix) + key

    def _get(self, key: str) -> Any:
        self._known[key] = None
        return self.fields.get(key)

    def _texts(self, key: str, values: Iterable[Any]) -> list[str]:
        texts = []
        for number, value in enumerate(values):
            if isinstance(value, int) and not isinstance(value, bool):
                value = str(value)
            if isinstance(value, str) and "\0" not in value:
                texts.append(value)
            else:
                self._wrong(f"{key}.{number}", value, "a text; put it in quotes", None)
        return texts

    def _wrong(self, key: str, value: Any, expected: str, default: T) -> T:
        self.problem(key, describe(value), expected)
        return default


def describe(value: Any) -> str:
    """Name a value from a file, shortly.

    >>> describe("many"), describe(True), describe({"a": 1}), describe(7)
    ("'many'", 'yes', 'a mapping', '7')
    """
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, str):
        return repr(value if len(value) <= 60 else value[:57] + "...")
    if isinstance(value, int | float):
        return str(value)
    return _KINDS.get(type(value), f"a {type(value).__name__}")


def _suggest(key: str, known: Iterable[str]) -> str:
    names = sorted(known)
    near = difflib.get_close_matches(key, names, n=1)
    if near:
        return repr(near[0])
    return "one of " + ", ".join(names) if names else "no keys here"
