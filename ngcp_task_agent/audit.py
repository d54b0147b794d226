"""
The audit log: one JSON line for each decision, chained so that nobody can change one unseen.

A line is an object with ``seq`` (1, 2, …), ``time`` (unix seconds), ``node``, ``event``, what
the event is about, ``prev`` (the hash of the line before, 64 zeros for the first) and, last,
``hash``: the SHA-256 of the line without it. So a line that is changed, taken out, put in or
moved breaks the chain at that place. Who cuts lines off the end leaves a whole chain: compare
its last hash with the one that the daemon logs at each start and stop.

A file that has grown to its limit becomes FILE.1, that FILE.2, and so on; the chain goes on
with a line ``begun``, so that a file whose first lines were taken out is no whole file.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from .errors import AuditError, MessageError
from .messages import decode, encode

BEGUN = "begun"  # the event at the head of each further file
FIRST = "0" * 64  # the hash before the first line
_END = len('"hash":""}') + 64  # characters of a line from the key ``hash`` on
LONGEST = 1024 * 1024  # bytes of a line that can be one of ours

log = logging.getLogger(__name__)


class AuditState(NamedTuple):
    """How the audit log is.

    Attributes:
        ok: Whether the last line could be written.
        text: One line for people.
        failures: Lines that could not be written.
        lines: Number of the last line.
    """

    ok: bool
    text: str
    failures: int
    lines: int


class AuditLog:
    """The file at *path*, and the older ones beside it.

    Args:
        path: The file; its directory is made if need be.
        max_size: Bytes after which a new one is begun.
        keep: How many older ones stay; 0 for all.
        node: What this node is called now.

    Attributes:
        on_change: Called when `state().ok` has changed.
    """

    def __init__(self, path: str, max_size: int, keep: int, node: Callable[[], str]) -> None:
        self.on_change: Callable[[], None] = lambda: None
        self._path = Path(path)
        self._max_size, self._keep, self._node = max_size, keep, node
        self._file = -1
        self._size = 0
        self._seq, self._hash = 0, FIRST
        self._trouble = "not open"
        self._failures = 0
        self._missed = 0  # since the last line that could be written

    def open(self) -> None:
        """Go on where the last line ended; never raises, see `state`."""
        try:
            self._open()
        except (OSError, AuditError) as exc:
            self._went(_text(exc))
            return
        self._went("")
        log.info("audit: %s goes on after line %d, hash %s", self._path, self._seq, self._hash)

    def write(self, event: str, fields: Mapping[str, Any]) -> None:
        """Add a line.

        Raises:
            AuditError: It is not there.
        """
        try:
            if self._file >= 0 and not os.fstat(self._file).st_nlink:
                self._let_go()  # somebody has deleted it
            if self._file < 0:
                self._open()
            self._append(event, fields)
        except (OSError, AuditError, MessageError) as exc:
            self._failures += 1
            self._missed += 1
            self._went(_text(exc))
            raise AuditError(_text(exc)) from exc
        self._went("")

    def close(self) -> None:
        """Let go of the file."""
        if self._file >= 0:
            log.info("audit: %s ends with line %d, hash %s", self._path, self._seq, self._hash)
            self._let_go()

    def state(self) -> AuditState:
        """How it is now."""
        text = f"audit: {self._seq} lines"
        if self._trouble:
            text = f"audit: not writable: {self._trouble}"
        if self._failures:
            text += f"; {self._failures} lost"
        return AuditState(not self._trouble, text, self._failures, self._seq)

    def _open(self) -> None:
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
        file = os.open(self._path, flags, 0o600)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            torn = self._find_end(file)
        except BlockingIOError:
            os.close(file)
            raise AuditError(f"{self._path}: in use by another agent") from None
        except BaseException:
            os.close(file)
            raise
        self._file = file
        if torn:
            digest = hashlib.sha256(torn).hexdigest()
            self._append("torn", {"bytes": len(torn), "sha256": digest})

    def _find_end(self, file: int) -> bytes:
        """Learn what the chain ends with; what is torn off the end is taken away, and returned."""
        self._size = os.fstat(file).st_size
        tail = os.pread(file, LONGEST, max(0, self._size - LONGEST))
        whole, _, torn = tail.rpartition(b"\n")
        if torn:
            os.ftruncate(file, self._size - len(torn))
            self._size -= len(torn)
        last = whole.rpartition(b"\n")[2]
        if not last:
            older = self._path.with_name(f"{self._path.name}.1")
            with suppress(FileNotFoundError), older.open("rb") as before:
                before.seek(max(0, older.stat().st_size - LONGEST))
                last = before.read().rstrip(b"\n").rpartition(b"\n")[2]
        if last:
            try:
                fields = decode(last)
                self._seq, self._hash = int(fields["seq"]), str(fields["hash"])
            except (MessageError, KeyError, TypeError, ValueError) as exc:
                raise AuditError(
                    f"{self._path}: its last line is none of ours: move the file away"
                ) from exc
        return torn

    def _append(self, event: str, fields: Mapping[str, Any]) -> None:
        missed = {"missed": self._missed} if self._missed else {}
        body = encode({
            "seq": self._seq + 1, "time": time.time(), "node": self._node(), "event": event,
            **fields, **missed, "prev": self._hash,
        })  # fmt: skip
        digest = hashlib.sha256(body).hexdigest()
        line = b'%s,"hash":"%s"}\n' % (body[:-1], digest.encode())
        written = os.write(self._file, line)
        if written < len(line):
            os.ftruncate(self._file, self._size)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._size += written
        self._seq, self._hash, self._missed = self._seq + 1, digest, 0
        if self._size >= self._max_size:
            self._rotate()

    def _rotate(self) -> None:
        older = sorted(_older(self._path), reverse=True)
        for number, path in older:
            if self._keep and number >= self._keep:
                path.unlink()
            else:
                path.replace(self._path.with_name(f"{self._path.name}.{number + 1}"))
        self._path.replace(self._path.with_name(f"{self._path.name}.1"))
        self._let_go()
        self._open()
        self._append(BEGUN, {})

    def _let_go(self) -> None:
        os.close(self._file)
        self._file = -1

    def _went(self, trouble: str) -> None:
        before, self._trouble = self._trouble, trouble
        if trouble and trouble != before:
            log.error("audit: nothing can be written: %s", trouble)
        if bool(before) != bool(trouble):
            self.on_change()


class Fault(NamedTuple):
    """Where a chain is broken.

    Attributes:
        file, line: The place.
        found, expected: What stands there, and what would be right.
    """

    file: str
    line: int
    found: str
    expected: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: found {self.found}; expected {self.expected}"


class Verdict(NamedTuple):
    """What a look at a chain has shown.

    Attributes:
        lines: How many are whole, from the first on.
        first, last: Numbers of the first and the last of them.
        hash: Of the last.
        fault: Where it is broken; None if it is not.
        torn: Bytes at the very end that are no whole line: it was cut off while it was
            written, by a loss of power.
    """

    lines: int
    first: int
    last: int
    hash: str
    fault: Fault | None = None
    torn: int = 0


def files_of(path: str) -> list[str]:
    """*path* and the older files beside it, the oldest first."""
    older = [str(one) for _, one in sorted(_older(Path(path)), reverse=True)]
    return [*older, path]


def verify(paths: Iterable[str]) -> Verdict:
    """Follow the chain through *paths*, the oldest first.

    Raises:
        OSError: A file cannot be read.
    """
    found = Verdict(0, 0, 0, FIRST)
    for file, number, line in _lines(paths):
        if found.torn:
            expected = "whole lines: only the last of all files may end with a torn one"
            found = found._replace(torn=0)
            return found._replace(fault=Fault(file, number, "a line after a torn one", expected))
        if not line.endswith(b"\n"):
            found = found._replace(torn=len(line))
            continue
        fault = _fault(line[:-1], found)
        if fault is not None:
            return found._replace(fault=Fault(file, number, *fault))
        fields = decode(line)
        first = found.first or fields["seq"]
        found = Verdict(found.lines + 1, first, fields["seq"], fields["hash"])
    return found


def _fault(line: bytes, before: Verdict) -> tuple[str, str] | None:
    """What is wrong with *line*, and what would be right."""
    try:
        fields = decode(line)
        seq, prev, own = fields["seq"], fields["prev"], fields["hash"]
    except (MessageError, KeyError, TypeError):
        return f"{line[:60]!r}", "an object with seq, prev and hash"
    body = line[:-_END].rstrip(b",") + b"}"
    digest = hashlib.sha256(body).hexdigest()
    if own != digest or not line.endswith(b',"hash":"%s"}' % digest.encode()):
        return f"hash {own!s:.64}", f"{digest}: the line was changed"
    expected = before.last + 1 if before.lines else seq
    if seq != expected:
        return f"line number {seq!r:.20}", f"{expected}: lines were taken out, put in or moved"
    if not before.lines and seq != 1 and fields.get("event") != BEGUN:
        return f"line number {seq!r:.20}", f"1, or a line {BEGUN!r}: lines were taken out"
    if (before.lines or seq == 1) and prev != before.hash:
        return f"prev {prev!s:.64}", f"{before.hash}: the line before was changed or is another"
    return None


def _lines(paths: Iterable[str]) -> Iterator[tuple[str, int, bytes]]:
    for path in paths:
        with open(path, "rb") as file:
            for number, line in enumerate(file, 1):
                yield path, number, line


def _older(path: Path) -> Iterator[tuple[int, Path]]:
    for one in path.parent.glob(path.name + ".*"):
        last = one.name.removeprefix(path.name + ".")
        if last.isascii() and last.isdigit():
            yield int(last), one


def _text(error: Exception) -> str:
    if isinstance(error, OSError):
        return f"{error.filename or ''}: {error.strerror}".removeprefix(": ")
    return str(error)
