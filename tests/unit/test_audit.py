"""The audit log on real files: whatever is done to it shows, and no trouble breaks its chain."""

import json
import os
import resource
import stat
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ngcp_task_agent.audit import AuditLog, files_of, verify
from ngcp_task_agent.cli.daemon import run
from ngcp_task_agent.errors import AuditError


def opened(path, max_size=10**6, keep=0):
    log = AuditLog(str(path), max_size, keep, lambda: "prx01a")
    log.open()
    return log


def written(path, count=5, **sizes):
    """A log of *count* lines, closed."""
    log = opened(path, **sizes)
    for number in range(count):
        log.write("allowed", {"task": "ping", "uuid": f"u{number}"})
    log.close()
    return path


def events(path):
    whole = b"".join(Path(name).read_bytes() for name in files_of(str(path)))
    return [(line["seq"], line["event"]) for line in map(json.loads, whole.splitlines())]


def test_each_line_says_what_and_holds_on_to_the_one_before(tmp_path):
    """Any language can check it: SHA-256 of the line without its hash."""
    path = written(tmp_path / "log" / "audit.jsonl", 2)
    first, second = (json.loads(line) for line in path.read_bytes().splitlines())

    assert (first["seq"], first["node"], first["event"], first["uuid"]) == (
        1, "prx01a", "allowed", "u0",
    )  # fmt: skip
    assert first["prev"] == "0" * 64
    assert second["prev"] == first["hash"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert verify([str(path)])[:4] == (2, 1, 2, second["hash"])


def test_it_goes_on_after_a_restart_and_from_file_to_file(tmp_path):
    """The chain is one, and so many files are kept."""
    path = tmp_path / "audit.jsonl"
    for _ in range(3):
        written(path, 10, max_size=1500, keep=3)
    files = files_of(str(path))
    found = verify(files)

    assert [os.path.basename(name) for name in files] == [
        "audit.jsonl.3", "audit.jsonl.2", "audit.jsonl.1", "audit.jsonl",
    ]  # fmt: skip
    assert found.fault is None
    assert found.first > 1
    assert [seq for seq, _ in events(path)] == list(range(found.first, found.last + 1))
    assert [event for _, event in events(path)].count("begun") == 4


def test_a_line_that_was_torn_off_is_told_from_one_that_was_changed(tmp_path):
    """The machine stopped while it was written; at the next start that is written down."""
    path = written(tmp_path / "audit.jsonl")
    with path.open("ab") as file:
        file.write(b'{"seq":6,"ti')
    found = verify([str(path)])
    assert (found.fault, found.torn, found.lines) == (None, 12, 5)

    opened(path).close()
    assert events(path)[-1] == (6, "torn")
    assert verify([str(path)]).torn == 0


def test_what_cannot_be_written_is_told_and_leaves_the_chain_whole(tmp_path):
    """How much is missing stands in the next line."""
    log = opened(tmp_path / "audit.jsonl")
    changes = []
    log.on_change = lambda: changes.append(log.state().ok)
    log.write("allowed", {"task": "ping"})
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (os.path.getsize(tmp_path / "audit.jsonl") + 30,
                                               before[1]))  # fmt: skip
    try:
        for _ in range(2):
            with pytest.raises(AuditError, match="No space left"):
                log.write("started", {"task": "ping"})
        assert log.state().text == "audit: not writable: No space left on device; 2 lost"
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    log.write("ended", {"task": "ping"})
    log.close()

    assert changes == [False, True]
    assert events(tmp_path / "audit.jsonl") == [(1, "allowed"), (2, "ended")]
    assert json.loads((tmp_path / "audit.jsonl").read_bytes().splitlines()[1])["missed"] == 2
    assert verify([str(tmp_path / "audit.jsonl")]).fault is None


@pytest.mark.parametrize("wrong", ["directory", "strange"])
def test_a_place_that_is_no_good_is_tried_again(tmp_path, wrong):
    """The daemon starts all the same."""
    path = tmp_path / "audit.jsonl"
    if wrong == "directory":
        path.mkdir()
    else:
        path.write_text("somebody's diary\n")
    log = opened(path)
    assert not log.state().ok
    with pytest.raises(AuditError):
        log.write("allowed", {})
    path.rmdir() if wrong == "directory" else path.unlink()
    log.write("allowed", {})
    log.close()
    assert events(path) == [(1, "allowed")]


def test_a_torn_end_that_is_not_the_end_is_a_fault(tmp_path):
    """Whoever cuts an older file cannot pass it off as a loss of power."""
    path = tmp_path / "audit.jsonl"
    written(path, 20, max_size=1500)
    older = tmp_path / "audit.jsonl.1"
    older.write_bytes(older.read_bytes()[:-1])
    found = verify(files_of(str(path)))
    assert (found.fault.file, found.fault.line) == (str(path), 1)


def test_a_file_that_was_deleted_is_begun_anew(tmp_path):
    """Nobody writes into nothing."""
    path = tmp_path / "audit.jsonl"
    log = opened(path)
    log.write("allowed", {})
    path.unlink()
    log.write("started", {})
    log.close()
    assert [event for _, event in events(path)] == ["started"]


def test_two_agents_do_not_write_one_chain(tmp_path):
    """The second one says so, and takes over when the first has ended."""
    first = opened(tmp_path / "audit.jsonl")
    second = opened(tmp_path / "audit.jsonl")
    assert "in use by another agent" in second.state().text
    with pytest.raises(AuditError, match="in use by another agent"):
        second.write("allowed", {})
    first.write("allowed", {})
    first.close()
    second.write("started", {})
    second.close()
    assert events(tmp_path / "audit.jsonl") == [(1, "allowed"), (2, "started")]
    assert verify([str(tmp_path / "audit.jsonl")]).fault is None


def test_a_link_is_not_followed(tmp_path):
    """Whoever may write in the directory must not turn the agent's pen elsewhere."""
    (tmp_path / "target").write_text("")
    (tmp_path / "audit.jsonl").symlink_to(tmp_path / "target")
    assert "symbolic links" in opened(tmp_path / "audit.jsonl").state().text


LINES = 6


@settings(max_examples=300)
@given(
    st.one_of(
        st.tuples(st.just("flip"), st.integers(0, 10**6), st.integers(1, 255)),
        st.tuples(st.just("remove"), st.integers(0, LINES - 2), st.just(0)),
        st.tuples(st.just("repeat"), st.integers(0, LINES - 1), st.just(0)),
        st.tuples(st.just("swap"), st.integers(0, LINES - 2), st.just(0)),
        st.tuples(st.just("forge"), st.integers(0, LINES - 2), st.just(0)),
    )
)
def test_whatever_is_changed_shows(tmp_path_factory, change):
    """A byte, a line taken out, put in, moved, or written anew with a hash that fits it."""
    path = written(tmp_path_factory.mktemp("log") / "audit.jsonl", LINES)
    verb, at, how = change
    data = bytearray(path.read_bytes())
    lines = bytes(data).splitlines(keepends=True)
    if verb == "flip":
        data[at % (len(data) - 1)] ^= how  # the last line's end is that of a torn line
        lines = [bytes(data)]
    elif verb == "remove":
        del lines[at]
    elif verb == "repeat":
        lines.insert(at, lines[at])
    elif verb == "swap":
        lines[at], lines[at + 1] = lines[at + 1], lines[at]
    else:
        other = written(path.with_name("other.jsonl"), LINES)
        lines[at] = other.read_bytes().splitlines(keepends=True)[at]
    path.write_bytes(b"".join(lines))

    found = verify([str(path)])
    assert found.fault is not None or found.torn


def test_the_command_says_where_it_is_broken(tmp_path, capsys):
    """File, line, what was found and what was expected; and whether lines are missing."""
    path = written(tmp_path / "audit.jsonl")
    assert run(["audit", "verify", str(path)]) == 0
    said = capsys.readouterr().out
    head = said.split()[-1]
    assert said.startswith("5 lines are whole: 1 to 5, hash ")
    assert run(["audit", "verify", "--head", head, str(path)]) == 0

    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:4]))
    assert run(["audit", "verify", str(path)]) == 0
    assert run(["audit", "verify", "--head", head, str(path)]) == 1
    assert "lines are missing" in capsys.readouterr().err
    path.write_bytes(b"".join([*lines[:2], lines[2].replace(b"u2", b"u3"), *lines[3:]]))
    assert run(["audit", "verify", str(path)]) == 1
    assert f"{path}:3: found hash " in capsys.readouterr().err
    assert run(["audit", "verify", str(tmp_path / "none")]) == 66
    assert "No such file" in capsys.readouterr().err
