"""The redo log: what stands there outlives the process, whatever else went wrong."""

import os
import resource
import stat

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ngcp_task_agent.errors import JournalError
from ngcp_task_agent.records import RUNNING, Entry, Outcome, Record, cleaned, clipped, to_row
from ngcp_task_agent.redo import RedoLog


def row(uuid="u", outcome=RUNNING):
    entry = Entry("web01a", uuid, "ping", "redis", "fb", "", "prx01a", accepted=1.5)
    return to_row(Record(entry, outcome, True, 2.5))


@pytest.fixture
def log(tmp_path):
    """A redo log that is written."""
    redo = RedoLog(str(tmp_path / "journal.db.redo"))
    redo.switch()
    yield redo
    redo.close()


def left(tmp_path):
    """What the next start would find."""
    return RedoLog(str(tmp_path / "journal.db.redo")).read()


def names(tmp_path):
    return sorted(path.name for path in tmp_path.iterdir())


def test_what_is_appended_is_there_at_once_for_its_owner_only(tmp_path, log):
    """Nobody closes a file before a kill."""
    log.append(row("a"))
    log.append(row("b", Outcome("done", "", b'{"data": "\xc3\xa9"}')))

    assert left(tmp_path) == [row("a"), row("b", Outcome("done", "", b'{"data": "\xc3\xa9"}'))]
    assert stat.S_IMODE((tmp_path / "journal.db.redo.1").stat().st_mode) == 0o600


def test_what_is_stored_is_dropped_and_nothing_else(tmp_path, log):
    """More is recorded while the older is on its way into the ledger."""
    log.append(row("stored"))
    log.switch()
    log.append(row("later"))
    assert left(tmp_path) == [row("stored"), row("later")]
    log.drop()

    assert left(tmp_path) == [row("later")]
    assert log.size == (tmp_path / "journal.db.redo.2").stat().st_size


def test_the_next_run_goes_on_with_another_file(tmp_path, log):
    """Its own records must come after those that were left, by number: 10 is after 9."""
    for number in range(2, 12):
        log.append(row(f"u{number}"))
        log.switch()
    again = RedoLog(str(tmp_path / "journal.db.redo"))
    found = [each[1] for each in again.read()]
    again.switch()
    again.append(row("new"))
    again.drop()
    again.close()

    assert found == [f"u{number}" for number in range(2, 12)]
    assert names(tmp_path) == ["journal.db.redo.12"]


@pytest.mark.parametrize(
    "torn", [b'["web01a","u2","pi', b"\0" * 40, b"[]", b"{}", b'"x"', b"7", b"[1]"]
)
def test_a_line_that_is_no_record_costs_no_other(tmp_path, log, caplog, torn):
    """The machine may have stopped while it was written."""
    log.append(row("whole"))
    with (tmp_path / "journal.db.redo.1").open("ab") as file:
        file.write(torn + b"\n")
    log.append(row("after"))

    assert left(tmp_path) == [row("whole"), row("after")]
    assert "no record" in caplog.text


def test_a_record_without_room_is_refused_and_leaves_no_trace(tmp_path, log):
    """Half of it would spoil the next one; the whole of it would be answered at the next start."""
    log.append(row("before"))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (log.size + 20, before[1]))
    try:
        for _ in range(2):
            with pytest.raises(JournalError, match=os.strerror(28)):
                log.append(row("refused"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    log.append(row("after"))

    assert left(tmp_path) == [row("before"), row("after")]


def test_it_does_not_grow_without_end(tmp_path, log, monkeypatch):
    """When the ledger takes nothing for long."""
    monkeypatch.setattr("ngcp_task_agent.redo.LONGEST", 1000)
    while log.size <= 1000:
        log.append(row())
    with pytest.raises(JournalError, match=r"^\d+ bytes wait to be stored$"):
        log.append(row())


def test_without_a_new_file_it_goes_on_in_the_old_one(tmp_path, log):
    """A directory that is gone, or no room for another file."""
    log.append(row("a"))
    moved = tmp_path.with_name(tmp_path.name + "-moved")
    tmp_path.rename(moved)
    try:
        with pytest.raises(JournalError, match="No such file"):
            log.switch()
        log.append(row("b"))
        log.drop()
        assert left(moved) == [row("a"), row("b")]
    finally:
        moved.rename(tmp_path)


texts = st.text(max_size=20)
payloads = texts.map(lambda text: text.encode("utf-8", "replace"))


@settings(max_examples=200)
@given(
    st.lists(texts, min_size=7, max_size=7),
    st.tuples(st.sampled_from(["done", "error", "again"]), texts, payloads),
    st.booleans(),
)
def test_any_record_comes_back_as_it_was(tmp_path_factory, fields, outcome, owed):
    """Line ends and control characters in names included."""
    place = tmp_path_factory.mktemp("redo")
    redo = RedoLog(str(place / "journal.db.redo"))
    redo.switch()
    record = Record(cleaned(Entry(*fields, 3, True, 0.25)), clipped(Outcome(*outcome)), owed, 1.5)
    redo.append(to_row(record))
    redo.close()

    assert left(place) == [to_row(record)]
