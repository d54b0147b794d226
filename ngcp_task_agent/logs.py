"""
How the daemon logs: text, journald priorities or JSON lines; floods are held back.
"""

from __future__ import annotations

import logging
import os
import re
import sys
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime

from .messages import encode

FORMATS = ("auto", "text", "journal", "json")
LEVELS = ("debug", "info", "warning", "error")
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f-\x9f\u2028\u2029]")
_PRIORITY = {
    logging.DEBUG: 7,
    logging.INFO: 6,
    logging.WARNING: 4,
    logging.ERROR: 3,
    logging.CRITICAL: 2,
}


def configure(level: str, form: str) -> None:
    """Log to stderr.

    Args:
        level: One of `LEVELS`.
        form: One of `FORMATS`; auto is journal where stderr goes to journald.
    """
    if form == "auto":
        form = "journal" if goes_to_journal(os.environ) else "text"
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        {"journal": JournalFormatter, "json": JsonFormatter, "text": TextFormatter}[form]()
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    # No format shows where a line was logged, or from which thread: a line in three
    # costs less ("Optimization" in the logging documentation).
    logging._srcfile = None
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    root.setLevel(level.upper())


def goes_to_journal(environ: Mapping[str, str]) -> bool:
    """Whether stderr is journald's socket, as systemd tells in ``JOURNAL_STREAM``."""
    device, _, inode = environ.get("JOURNAL_STREAM", "").partition(":")
    try:
        status = os.fstat(2)
    except OSError:
        return False
    return (device, inode) == (str(status.st_dev), str(status.st_ino))


class SafeFormatter(logging.Formatter):
    """Keeps a message on its line, with control characters made visible: what clients
    and programs say must not forge lines or move the cursor of who reads them."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        record.message = _CONTROL.sub(lambda match: f"\\x{ord(match[0]):02x}", record.message)
        return super().formatMessage(record)


class TextFormatter(SafeFormatter):
    """Time, level, text."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(message)s")


class JournalFormatter(SafeFormatter):
    """The priority in front of each line, see sd-daemon(3); journald adds the time."""

    def __init__(self) -> None:
        super().__init__("%(message)s")

    def format(self, record: logging.LogRecord) -> str:
        prefix = f"<{_PRIORITY.get(record.levelno, 6)}>"
        return "\n".join(prefix + line for line in super().format(record).splitlines())


class JsonFormatter(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        fields = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        return encode(
            {key: text.encode("utf-8", "replace").decode() for key, text in fields.items()}
        ).decode()


class Throttle:
    """Lets the first lines of a flood through and counts the rest.

    Args:
        log: Where to.
        lines: How many lines pass in one period.
        period: Seconds.
        clock: Seconds, monotonic; replaced in tests.
    """

    def __init__(
        self,
        log: logging.Logger,
        lines: int = 10,
        period: float = 60.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._log = log
        self._lines = lines
        self._period = period
        self._clock = clock
        self._began = -period
        self._seen = 0

    def warning(self, text: str, *args: object) -> None:
        """Log, or count."""
        now = self._clock()
        if now - self._began >= self._period:
            if self._seen > self._lines:
                self._log.warning(
                    "%d more lines like these were left out", self._seen - self._lines
                )
            self._began, self._seen = now, 0
        self._seen += 1
        if self._seen <= self._lines:
            self._log.warning(text, *args)
        if self._seen == self._lines:
            self._log.warning("more lines like these are left out for %g s", self._period)
