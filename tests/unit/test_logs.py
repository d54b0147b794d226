import json
import logging
import os
import re
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ngcp_task_agent import logs
from ngcp_task_agent.logs import JournalFormatter, JsonFormatter, TextFormatter, Throttle

from ..helpers import Clock

LOG = logging.getLogger("test.throttle")


def record(text, level=logging.INFO, *, failed=False):
    error = None
    if failed:
        try:
            raise ValueError("no such user")
        except ValueError:
            error = sys.exc_info()
    return logging.LogRecord("test", level, "file.py", 1, "%s", (text,), error)


@pytest.fixture
def throttle(caplog):
    clock = Clock()
    return Throttle(LOG, lines=3, period=60, clock=clock), clock


def flood(throttle, count):
    for number in range(count):
        throttle.warning("line %d", number)


def test_a_few_lines_pass(throttle, caplog):
    """Below the limit nothing is held back, and nothing said about it."""
    flood(throttle[0], 2)

    assert caplog.messages == ["line 0", "line 1"]


def test_a_flood_is_held_back_and_says_so(throttle, caplog):
    """A stranger must not fill the disk."""
    flood(throttle[0], 1000)

    assert caplog.messages[:3] == ["line 0", "line 1", "line 2"]
    assert caplog.messages[3:] == ["more lines like these are left out for 60 s"]


def test_the_next_period_tells_how_many_were_left_out(throttle, caplog):
    """Nothing is lost silently."""
    throttle, clock = throttle
    flood(throttle, 10)
    caplog.clear()

    clock.now += 60
    flood(throttle, 1)

    assert caplog.messages == ["7 more lines like these were left out", "line 0"]


def test_a_period_without_a_flood_has_nothing_to_tell(throttle, caplog):
    """Exactly as many as may pass is no flood."""
    throttle, clock = throttle
    flood(throttle, 3)
    caplog.clear()

    clock.now += 60
    flood(throttle, 1)

    assert caplog.messages == ["line 0"]


class Lines:
    """A logger that keeps what it is told."""

    def __init__(self):
        self.texts = []

    def warning(self, text, *args):
        self.texts.append(text)


@given(st.lists(st.integers(0, 30), max_size=200))
def test_no_rhythm_of_a_flood_gets_more_through(gaps):
    """Never more than two periods' worth within one, and all that is held back is told of."""
    log, clock, passed = Lines(), Clock(), []
    throttle = Throttle(log, lines=3, period=60, clock=clock)
    for gap in gaps:
        clock.now += gap
        log.texts.clear()
        throttle.warning("line")
        passed += [clock.now] * log.texts.count("line")

    assert all(later - earlier >= 60 for earlier, later in zip(passed, passed[6:], strict=False))


@pytest.mark.parametrize(
    ("level", "priority"),
    [
        (logging.DEBUG, 7),
        (logging.INFO, 6),
        (logging.WARNING, 4),
        (logging.ERROR, 3),
        (logging.CRITICAL, 2),
    ],
)
def test_a_line_for_journald_begins_with_its_priority(level, priority):
    """As sd-daemon(3) wants it; what is worse has the smaller number."""
    assert JournalFormatter().format(record("ready", level)) == f"<{priority}>ready"


def test_each_line_for_journald_has_the_priority():
    """A traceback is many lines, and belongs to its error."""
    lines = JournalFormatter().format(record("failed", logging.ERROR, failed=True)).split("\n")

    assert len(lines) > 3
    assert all(line.startswith("<3>") for line in lines)


@given(st.text())
def test_a_json_line_is_one_line_of_json(text):
    """Whatever is in it."""
    line = JsonFormatter().format(record(text))

    assert "\n" not in line
    assert json.loads(line)["message"] == text


def test_a_json_line_tells_who_and_when():
    """With a zone, and the traceback where there is one."""
    fields = json.loads(JsonFormatter().format(record("failed", logging.ERROR, failed=True)))

    assert (fields["level"], fields["logger"], fields["message"]) == ("error", "test", "failed")
    assert fields["time"].endswith("+00:00")
    assert "ValueError: no such user" in fields["exception"]


def test_a_json_line_survives_half_a_character():
    """A file's name in another encoding comes as a lone surrogate."""
    assert json.loads(JsonFormatter().format(record("a\udc80b")))["message"] == "a?b"


@pytest.mark.parametrize("formatter", [TextFormatter(), JournalFormatter()])
@given(st.text())
def test_what_strangers_say_stays_on_its_line(formatter, text):
    """A client must not forge lines, nor move the cursor of who reads them."""
    line = formatter.format(record(f"<{text}>"))

    assert len(line.splitlines()) == 1
    assert not re.search(r"[\x00-\x08\x0a-\x1f\x7f-\x9f]", line)


def test_a_control_character_is_made_visible():
    """It is no secret that it was there."""
    assert JournalFormatter().format(record("a\x1b[2Jb\nc\td")) == "<6>a\\x1b[2Jb\\x0ac\td"


def test_a_text_line_has_time_and_level():
    """For people at a terminal."""
    line = TextFormatter().format(record("ready", logging.WARNING))

    assert line.endswith(" WARNING ready")
    assert line[:2] == "20"


@pytest.fixture
def root():
    """The root logger, and all of logging's switches, put back afterwards."""
    switches = ("_srcfile", "logThreads", "logProcesses", "logMultiprocessing")
    before = {name: getattr(logging, name) for name in switches}
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield root
    root.handlers[:] = handlers
    root.setLevel(level)
    for name, value in before.items():
        setattr(logging, name, value)


@pytest.mark.parametrize(
    ("form", "formatter"),
    [("text", TextFormatter), ("journal", JournalFormatter), ("json", JsonFormatter)],
)
def test_configure_sets_level_and_form(root, form, formatter, capsys):
    """Once for all of the program, on stderr; again when the files are read again."""
    for _ in range(2):
        logs.configure("warning", form)

    logging.getLogger("x").info("quiet")
    logging.getLogger("x").warning("loud")

    (handler,) = root.handlers
    assert isinstance(handler.formatter, formatter)
    out, err = capsys.readouterr()
    assert (out, err.count("quiet"), err.count("loud")) == ("", 0, 1)


def test_auto_is_the_journal_where_stderr_goes_there():
    """systemd tells device and inode of the socket."""
    status = os.fstat(2)

    assert logs.goes_to_journal({"JOURNAL_STREAM": f"{status.st_dev}:{status.st_ino}"})
    assert not logs.goes_to_journal({"JOURNAL_STREAM": f"{status.st_dev}:{status.st_ino + 1}"})
    assert not logs.goes_to_journal({})
