"""
The redo log: records that outlive this process until the ledger has them.

A record is one line of JSON. It costs one write into the page cache, a tenth of what a
transaction does. The files are numbered: while what stands in one is stored for good,
further records go to the next, and the older is removed afterwards. The agent's next
start reads what a crash has left.
"""

from __future__ import annotations

import errno
import logging
import os
from contextlib import suppress
from pathlib import Path

from .errors import JournalError, MessageError
from .messages import decode, encode
from .records import PAYLOAD_AT, Row

LONGEST = 64 * 1024 * 1024  # bytes that wait to be stored; more is refused

_TYPES = [*[str] * 7, int, bool, float, *[str] * 3, bool, float]  # of a row that was decoded

log = logging.getLogger(__name__)


class RedoLog:
    """The files *path* with a number behind it.

    Attributes:
        size: Bytes in those that are still there.
    """

    def __init__(self, path: str) -> None:
        self.size = 0
        self._path = Path(path)
        self._number = 0  # of the file that is written; 0: none yet
        self._file = -1
        self._length = 0  # its bytes
        self._older: list[Path] = []

    @property
    def is_open(self) -> bool:
        return self._file >= 0

    def read(self) -> list[Row]:
        """The records that an earlier run has left, oldest first.

        Raises:
            JournalError: They cannot be read.
        """
        self._older = sorted(self._path.parent.glob(self._path.name + ".*"), key=_number)
        rows: list[Row] = []
        for path in self._older:
            try:
                lines = path.read_bytes().splitlines()
            except OSError as exc:
                raise JournalError(f"{path}: {exc.strerror}") from exc
            for line in lines:
                try:
                    rows.append(_row(line))
                except (MessageError, ValueError):
                    log.warning("journal: %s: no record: %.80r", path, line)
            self._number = _number(path)
        return rows

    def append(self, row: Row) -> None:
        """Write the record in *row*.

        Raises:
            JournalError: It is not there.
        """
        if self._file < 0:
            raise JournalError("no redo log")
        if self.size > LONGEST:
            raise JournalError(f"{self.size} bytes wait to be stored")
        line = _line(row)
        try:
            written = os.write(self._file, line)
            if written < len(line):
                os.ftruncate(self._file, self._length)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as exc:
            raise JournalError(exc.strerror) from exc
        self.size += written
        self._length += written

    def switch(self) -> None:
        """Let further records go to a new file.

        Raises:
            JournalError: They go on in the old one.
        """
        path = self._path.with_name(f"{self._path.name}.{self._number + 1}")
        try:
            file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        except OSError as exc:
            raise JournalError(f"{path}: {exc.strerror}") from exc
        self.close()
        self._number += 1
        self._file, self._length = file, 0

    def drop(self) -> None:
        """Remove the files before the one that is written."""
        for path in self._older:
            with suppress(FileNotFoundError):
                path.unlink()
        self._older.clear()
        self.size = self._length

    def close(self) -> None:
        """Let go of the file; what stands in it stays."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
            self._older.append(self._path.with_name(f"{self._path.name}.{self._number}"))


def _number(path: Path) -> int:
    last = path.suffix.removeprefix(".")
    return int(last) if last.isascii() and last.isdigit() else 0


def _line(row: Row) -> bytes:
    text = row[PAYLOAD_AT].decode("utf-8", "replace")
    return encode([*row[:PAYLOAD_AT], text, *row[PAYLOAD_AT + 1 :]]) + b"\n"


def _row(line: bytes) -> Row:
    row = decode(line)
    if type(row) is not list or [type(value) for value in row] != _TYPES:
        raise ValueError("no record")
    row[PAYLOAD_AT] = row[PAYLOAD_AT].encode()
    return row
