"""The record of requests, on real files, with real crashes and a disk that is really full."""

import asyncio
import os
import signal
import sqlite3
import stat
import subprocess
import sys
from contextlib import asynccontextmanager, closing

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ngcp_task_agent import journal as journal_module
from ngcp_task_agent import ledger, records, redo
from ngcp_task_agent.errors import JournalError
from ngcp_task_agent.journal import Entry, Journal, Outcome, Unfinished

from ..helpers import until

DONE = Outcome("done", "", b'{"status":"done"}')
FAILED = Outcome("error", "no such file", b'{"status":"error"}')
AGAIN = Outcome("again", "exit status 1", b"")
RUNS = Outcome("error", "it runs already", b"")


def entry(uuid="u", **fields):
    default = {
        "src": "web01a",
        "task": "ping",
        "backend": "redis",
        "address": "fb",
        "stream": "",
        "node": "prx01a",
        "accepted": 1.5,
    }
    return Entry(**{**default, "uuid": uuid, **fields})


@asynccontextmanager
async def opened(place, **settings):
    """An open journal in *place*, with what it found as `left`."""
    journal = Journal(str(place / "state" / "journal.db"), **settings)
    journal.left = await journal.open()
    try:
        yield journal
    finally:
        await journal.close()


async def ended(journal, one, outcome=DONE):
    assert await journal.begin(one) is None
    await journal.end(one, outcome)


def rows(place, sql="SELECT uuid, status FROM jobs ORDER BY id"):
    """What stands in the file."""
    with closing(sqlite3.connect(place / "state" / "journal.db")) as db:
        return db.execute(sql).fetchall()


def lines(place):
    """What stands in the redo log: the uuid and status of each record, oldest first."""
    found = redo.RedoLog(str(place / "state" / "journal.db.redo")).read()
    return [(row[1], row[10]) for row in found]


async def test_a_request_is_on_disk_before_its_job_starts(tmp_path):
    """Else a crash would leave a job that nobody knows of; the outcome before the answer."""
    async with opened(tmp_path) as journal:
        assert await journal.begin(entry()) is None
        assert lines(tmp_path) == [("u", "")]
        await journal.end(entry(), DONE)
        assert lines(tmp_path) == [("u", ""), ("u", "done")]

        await until(lambda: rows(tmp_path) == [("u", "done")])
        await until(lambda: lines(tmp_path) == [])
    assert not list((tmp_path / "state").glob("*.redo.*"))


async def test_what_must_outlive_the_machine_is_in_the_ledger_at_once(tmp_path):
    """With an fsync for each transaction; nothing is promised before."""
    async with opened(tmp_path, sync="full") as journal:
        found = await asyncio.gather(*(journal.begin(entry(f"u{n % 3}")) for n in range(9)))

        assert found == [None] * 3 + [RUNS] * 6
        assert rows(tmp_path) == [("u0", ""), ("u1", ""), ("u2", "")]
        await journal.end(entry("u1"), DONE)
        assert rows(tmp_path)[1] == ("u1", "done")
        assert not list((tmp_path / "state").glob("*.redo.*"))


async def test_the_same_request_does_not_run_twice(tmp_path):
    """Whether it runs, has ended, or has ended before the agent was started."""
    async with opened(tmp_path) as journal:
        assert await journal.begin(entry()) is None
        assert await journal.begin(entry()) == RUNS
        await journal.end(entry(), DONE)
        assert await journal.begin(entry()) == DONE
        assert await journal.begin(entry(src="web01b")) is None
    async with opened(tmp_path) as journal:
        assert await journal.begin(entry(attempt=3)) == DONE


async def test_repeats_within_one_transaction_run_once(tmp_path):
    """They come in together, so neither has been committed when the other is looked at."""
    async with opened(tmp_path) as journal:
        found = await asyncio.gather(*(journal.begin(entry(f"u{n % 3}")) for n in range(9)))

        assert found == [None] * 3 + [RUNS] * 6
    assert rows(tmp_path) == [("u0", ""), ("u1", ""), ("u2", "")]


@pytest.mark.parametrize("sync", ["normal", "full"])
async def test_what_comes_together_is_one_transaction(tmp_path, monkeypatch, sync):
    """A commit for each would cost more than the jobs do."""
    sizes = []
    write = ledger.Ledger.write
    monkeypatch.setattr(
        ledger.Ledger,
        "write",
        lambda self, some, *rest: sizes.append(len(some)) or write(self, some, *rest),
    )
    async with opened(tmp_path, sync=sync) as journal:
        await asyncio.gather(*(journal.begin(entry(f"u{n}")) for n in range(300)))
        await until(lambda: journal.state().entries == 300)

        assert sum(sizes) == 300
        assert len(sizes) < 30
        assert len(rows(tmp_path)) == 300


async def test_what_has_ended_meanwhile_is_written_once(tmp_path, monkeypatch):
    """Most requests are over before their begin has gone into the ledger."""
    sizes = []
    write = ledger.Ledger.write
    monkeypatch.setattr(
        ledger.Ledger,
        "write",
        lambda self, some, *rest: sizes.append(len(some)) or write(self, some, *rest),
    )
    async with opened(tmp_path) as journal:
        for n in range(20):
            await ended(journal, entry(f"u{n}"))
            journal.sent(entry(f"u{n}"))
    assert sizes == [20]


async def test_what_was_left_is_returned_once_oldest_first(tmp_path):
    """Each client hears of it, and none hears it twice."""
    async with opened(tmp_path) as journal:
        for uuid in ("ran", "ended", "told", "late"):
            assert await journal.begin(entry(uuid)) is None
        await journal.end(entry("ended"), FAILED)
        await journal.end(entry("told"), DONE)
        journal.sent(entry("told"))
    expected = [
        Unfinished(entry("ran"), None),
        Unfinished(entry("ended"), FAILED),
        Unfinished(entry("late"), None),
    ]
    async with opened(tmp_path) as journal:
        assert journal.left == expected
        assert (await journal.begin(entry("ran"))).reason.startswith("outcome unknown")
        for left in journal.left:
            await journal.end(left.entry, left.outcome or FAILED)
            journal.sent(left.entry)
    async with opened(tmp_path) as journal:
        assert journal.left == []
        assert await journal.begin(entry("ran")) == FAILED


async def test_what_a_claim_holds_is_for_the_claim_to_decide(tmp_path):
    """Another node may have taken it over; who holds it runs it again, and answers."""
    claimed = entry(durable=True)
    async with opened(tmp_path) as journal:
        await ended(journal, entry("done", durable=True))
        assert await journal.begin(claimed) is None
    async with opened(tmp_path) as journal:
        assert journal.left == []
        assert await journal.begin(claimed._replace(attempt=2)) is None
    assert rows(tmp_path, "SELECT uuid, attempt, status FROM jobs ORDER BY id") == [
        ("done", 1, "done"),
        ("u", 2, ""),
    ]


async def test_a_further_attempt_is_recorded_anew_until_one_ends_for_good(tmp_path):
    """A claim that comes again after its outcome was stored gets that outcome."""
    first, second, third = (entry(durable=True, attempt=n) for n in (1, 2, 3))
    async with opened(tmp_path) as journal:
        await ended(journal, first, AGAIN)
        assert await journal.begin(second) is None
        assert await journal.begin(second) == RUNS
        assert await journal.begin(third) is None
        await journal.end(second, FAILED)
        assert lines(tmp_path)[-1] == ("u", "")
        await journal.end(third, DONE)

        assert await journal.begin(third) == DONE
        assert await journal.begin(entry(durable=True, attempt=4)) == DONE


async def test_a_begin_that_nobody_waits_for_is_taken_back(tmp_path):
    """Its job was never started; recorded as running it would be answered at the next start."""
    async with opened(tmp_path, sync="full") as journal:
        assert await journal.begin(entry("runs")) is None
        waiting = [asyncio.create_task(journal.begin(entry(uuid))) for uuid in ("u", "runs")]
        await asyncio.sleep(0)
        for task in waiting:
            task.cancel()
        await asyncio.wait(waiting)
        assert await journal.begin(entry("next")) is None
    assert rows(tmp_path) == [("runs", ""), ("next", "")]


async def test_sent_is_recorded_without_company(tmp_path, monkeypatch):
    """Else the last answer before a quiet night and a crash would be sent twice."""
    monkeypatch.setattr(journal_module, "LINGER", 0.01)
    async with opened(tmp_path) as journal:
        await ended(journal, entry())
        await until(lambda: rows(tmp_path, "SELECT owed FROM jobs") == [(1,)])
        journal.sent(entry())

        await until(lambda: rows(tmp_path, "SELECT owed FROM jobs") == [(0,)])


async def test_text_that_is_no_text_is_recorded_all_the_same(tmp_path):
    """Half a surrogate in a reason must not cost the others of its transaction."""
    odd = Outcome("error", "no file caf\udce9", b"")
    async with opened(tmp_path) as journal:
        await asyncio.gather(*(journal.begin(entry(uuid)) for uuid in ("a", "\ud800", "b\0c")))
        await asyncio.gather(*(journal.end(entry(uuid), odd) for uuid in ("a", "\ud800", "b\0c")))

        assert (await journal.begin(entry("\ud800"))).reason == "no file caf\\udce9"
        assert journal.state().failures == 0
    assert [status for _, status in rows(tmp_path)] == ["error"] * 3


async def test_a_payload_that_is_too_long_is_left_out(tmp_path):
    """The outcome stays, without its text; one of 64 KiB is kept whole."""
    async with opened(tmp_path) as journal:
        await ended(journal, entry("long"), DONE._replace(payload=b"x" * 65537))
        await ended(journal, entry("fits"), DONE._replace(payload=b"x" * 65536))

        assert await journal.begin(entry("long")) == DONE._replace(payload=b"")
        assert (await journal.begin(entry("fits"))).payload == b"x" * 65536


async def test_a_closed_journal_refuses(tmp_path):
    """Nobody waits for a thread that has gone."""
    async with opened(tmp_path) as journal:
        await ended(journal, entry())
    with pytest.raises(JournalError, match="closed"):
        await journal.begin(entry())
    await journal.end(entry(), DONE)
    await journal.close()
    assert journal.state().text == "journal: closed"


async def test_nobody_else_reads_it_whatever_the_umask(tmp_path):
    """Answers may hold what only the client should see."""
    before = os.umask(0)
    try:
        async with opened(tmp_path) as journal:
            await ended(journal, entry())
            place = tmp_path / "state"
            modes = {p.name: stat.S_IMODE(p.stat().st_mode) for p in place.iterdir()}
    finally:
        os.umask(before)

    assert stat.S_IMODE(place.stat().st_mode) == 0o700
    assert set(modes) >= {"journal.db", "journal.db-wal", "journal.db.lock"}
    assert set(modes.values()) == {0o600}


# Crashes

CHILD = """
import asyncio, os, sys
from ngcp_task_agent.journal import Journal, Outcome
from tests.unit.test_journal import entry, DONE

async def main(path):
    journal = Journal(path)
    await journal.open()
    print("state", journal.state().text, flush=True)
    async def work(name):
        for n in range(100_000):
            one = entry(f"{name}-{n}")
            assert await journal.begin(one) is None
            os.write(1, f"begun {one.uuid}\\n".encode())
            if n % 2:
                await journal.end(one, DONE)
                os.write(1, f"ended {one.uuid}\\n".encode())
            if "exit" in sys.argv and n == 20:
                os._exit(1)
    await asyncio.gather(*map(work, range(8)))

asyncio.run(main(sys.argv[1]))
"""


def child(place, *words):
    """A process that records until it ends or is killed, and tells what it was told."""
    return subprocess.Popen(
        [sys.executable, "-c", CHILD, str(place / "state" / "journal.db"), *words],
        stdout=subprocess.PIPE,
        text=True,
    )


def killed_after(process, lines):
    """What *process* has told, killed when it has told *lines*; at its end if 0."""
    told = []
    with process:
        for line in process.stdout:
            told.append(line.split(maxsplit=1))
            if len(told) == lines:
                process.kill()
    return told


@pytest.mark.parametrize("lines", [0, 2, 50, 333, 1000])
async def test_what_was_told_outlives_the_process(tmp_path, lines):
    """A promise that a kill -9 breaks is none."""
    told = killed_after(child(tmp_path, *([] if lines else ["exit"])), lines)
    begun = {word.strip() for verb, word in told if verb == "begun"}
    over = {word.strip() for verb, word in told if verb == "ended"}
    assert begun

    async with opened(tmp_path) as journal:
        left = {one.entry.uuid: one.outcome for one in journal.left}
        assert begun <= set(left)
        assert {left[uuid] for uuid in over} <= {DONE}
        never_told = set(left) - begun
        assert len(never_told) <= 8
        assert journal.state().failures == 0


async def test_one_agent_at_a_time_and_the_next_takes_over(tmp_path):
    """Two would each run what the other has recorded; the next one starts before the first
    has ended, and then answers what that has left."""
    first = child(tmp_path)
    try:
        assert first.stdout.readline().startswith("state")
        assert first.stdout.readline()  # it has begun something
        async with opened(tmp_path) as journal:
            found = []
            journal.on_unfinished = found.extend
            assert journal.left == []
            assert "in use by another agent" in journal.state().text
            with pytest.raises(JournalError, match="in use by another agent"):
                await journal.begin(entry())

            first.send_signal(signal.SIGKILL)
            first.wait()
            assert await journal.begin(entry()) is None
            await until(lambda: found)
            assert journal.state().ok
            assert "u" not in {left.entry.uuid for left in found}
    finally:
        first.kill()
        first.wait()
        first.stdout.close()


# Trouble with the disk


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 1 MiB."""
    if os.geteuid() != 0:
        pytest.skip("only root mounts; test_a_file_that_must_not_grow is for everybody")
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m,mode=0700", "tmpfs", str(place)]
    mounted = subprocess.run(command, capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"no mount here: {mounted.stderr.strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)


def fill(path):
    with path.open("wb", buffering=0) as file:
        while file.write(b"x" * 512):
            pass


async def begin_many(journal, count):
    for n in range(count):
        await journal.begin(entry(f"n{n}"))


@pytest.mark.root
async def test_a_full_disk_refuses_what_is_new_and_forgets_nothing(small_disk, caplog, monkeypatch):
    """It tells why, once; when there is room again it goes on by itself."""
    monkeypatch.setattr(journal_module, "RETRY", 0.05)
    changes = []
    async with opened(small_disk) as journal:
        journal.on_change = lambda: changes.append(journal.state().ok)
        await ended(journal, entry("before"))
        for uuid in ("runs", "waits", "second"):
            assert await journal.begin(entry(uuid)) is None
        ballast = small_disk / "ballast"
        with pytest.raises(OSError, match="space"):
            fill(ballast)

        with pytest.raises(JournalError, match="No space left"):
            await begin_many(journal, 100)
        await journal.end(entry("runs"), DONE)
        journal.sent(entry("runs"))
        await journal.end(entry("second"), FAILED)
        assert await journal.begin(entry("runs")) == DONE
        assert await journal.begin(entry("before")) == DONE
        state = journal.state()
        assert changes == [False]
        assert state.failures >= 2
        assert state.text.startswith("journal: not writable: No space left on device; ")
        await asyncio.sleep(0.3)  # meanwhile it was tried again

        ballast.unlink()
        assert await journal.begin(entry("second")) == FAILED
        assert await journal.begin(entry("after")) is None
        await until(lambda: journal.state().ok)
        assert changes == [False, True]
        assert await journal.begin(entry("runs")) == DONE
        assert ("runs", "done") in rows(small_disk)
    assert [r.levelname for r in caplog.records if "recorded" in r.message].count("ERROR") == 1
    async with opened(small_disk) as journal:
        left = {one.entry.uuid: one.outcome for one in journal.left}
        assert {"before": DONE, "waits": None, "after": None}.items() <= left.items()
        assert "runs" not in left


LIMITED = """
import asyncio, resource, sys
from ngcp_task_agent.errors import JournalError
from ngcp_task_agent.journal import Journal
from tests.unit.test_journal import entry, DONE

async def main(path):
    journal = Journal(path)
    await journal.open()
    assert await journal.begin(entry("runs")) is None
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
    try:
        for n in range(100):
            await journal.begin(entry(f"more{n}"))
    except JournalError as exc:
        print("refused:", exc)
    await journal.end(entry("runs"), DONE)
    await asyncio.sleep(0.3)
    print(journal.state())
    assert await journal.begin(entry("runs")) == DONE
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert await journal.begin(entry("later")) is None
    while not journal.state().ok:
        await asyncio.sleep(0.01)
    print(journal.state())
    await journal.close()

asyncio.run(main(sys.argv[1]))
"""


async def test_a_file_that_must_not_grow(tmp_path):
    """An error of any other kind than a full disk: the file is opened anew each time."""
    command = [sys.executable, "-c", LIMITED, str(tmp_path / "state" / "journal.db")]
    run = await asyncio.to_thread(
        subprocess.run, command, capture_output=True, text=True, timeout=15
    )

    assert run.returncode == 0, run.stderr
    refused, bad, good = run.stdout.splitlines()
    assert refused.startswith("refused: ")
    assert "ok=False" in bad
    assert "failures=2" in bad
    assert "ok=True" in good
    found = rows(tmp_path)
    assert {("runs", "done"), ("more0", ""), ("later", "")} <= set(found)
    assert not list((tmp_path / "state").glob("*.redo.*"))


async def test_a_place_that_cannot_be_had_is_told_and_tried_again(tmp_path):
    """The daemon starts all the same."""
    (tmp_path / "state").write_text("not a directory")
    async with opened(tmp_path) as journal:
        assert journal.left == []
        assert not journal.state().ok
        assert "state" in journal.state().text
        with pytest.raises(JournalError, match="state"):
            await journal.begin(entry())
        (tmp_path / "state").unlink()

        assert await journal.begin(entry()) is None
        assert journal.state().ok


@pytest.mark.parametrize("step", [(ledger.Ledger, "write"), (redo.RedoLog, "switch")])
async def test_what_goes_wrong_at_the_start_is_made_good_by_the_first_request(
    tmp_path, monkeypatch, step
):
    """Also what an earlier run has left in the redo log is told then, and nothing is older."""
    journal = Journal(str(tmp_path / "state" / "journal.db"))
    await journal.open()
    assert await journal.begin(entry("left")) is None
    await crash(journal)
    place, name = step
    right = getattr(place, name)

    def fails_once(self, *arguments):
        monkeypatch.setattr(place, name, right)
        raise JournalError("no luck")

    monkeypatch.setattr(place, name, fails_once)
    async with opened(tmp_path) as journal:
        found = []
        journal.on_unfinished = found.extend
        assert (journal.left, journal.state().text) == ([], "journal: not writable: no luck")
        await journal.end(entry("left"), FAILED)
        assert await journal.begin(entry("next")) is None
        assert journal.state().ok
        assert await journal.begin(entry("left")) == FAILED
        await until(lambda: rows(tmp_path) == [("left", "error"), ("next", "")])


async def test_a_damaged_file_is_moved_aside(tmp_path, caplog):
    """Three are kept for whoever wants to look; the rest of the disk is for the journal."""
    place = tmp_path / "state"
    place.mkdir()
    for n in range(4):
        (place / f"journal.db.broken-100000000{n}").write_bytes(b"old")
    (place / "journal.db").write_bytes(b"this is no database" * 1000)
    async with opened(tmp_path) as journal:
        assert journal.state().ok
        await ended(journal, entry())

    broken = sorted(path.name for path in place.glob("*.broken-*"))
    assert len(broken) == 3
    assert (place / broken[-1]).read_bytes().startswith(b"this is no database")
    assert "is damaged" in caplog.text
    assert rows(tmp_path) == [("u", "done")]


async def test_damage_that_shows_itself_later_refuses_nothing(tmp_path):
    """The next request is recorded in a new file, with all that runs."""
    async with opened(tmp_path) as journal:
        for n in range(300):
            await journal.begin(entry(f"u{n}"))
    path = tmp_path / "state" / "journal.db"
    path.write_bytes(path.read_bytes()[:4096] + b"\xff" * (path.stat().st_size - 4096))
    async with opened(tmp_path) as journal:
        assert await journal.begin(entry("first")) is None
        assert await journal.begin(entry("second")) is None
        assert await journal.begin(entry("first")) == RUNS
        await until(lambda: rows(tmp_path) == [("first", ""), ("second", "")])
        assert journal.state().ok
    assert len(list(path.parent.glob("journal.db.broken-*"))) >= 1


async def test_a_file_of_a_newer_release_is_left_alone(tmp_path):
    """A downgrade must not throw away what the newer release has recorded."""
    async with opened(tmp_path) as journal:
        await ended(journal, entry())
    rows(tmp_path, "PRAGMA user_version = 99")
    async with opened(tmp_path) as journal:
        assert "newer release (schema 99" in journal.state().text
        with pytest.raises(JournalError, match="newer release"):
            await journal.begin(entry("v"))

    assert rows(tmp_path) == [("u", "done")]


# Bounds


async def test_what_is_too_old_goes_but_never_what_runs(tmp_path):
    """Age counts from the end."""
    async with opened(tmp_path) as journal:
        assert await journal.begin(entry("runs")) is None
        for n in range(3):
            await ended(journal, entry(f"u{n}"))
    async with opened(tmp_path, max_age=3600.0) as journal:
        assert journal.state().entries == 4
    async with opened(tmp_path, max_age=0.0) as journal:
        await until(lambda: journal.state().entries == 1)
        assert rows(tmp_path) == [("runs", "")]


async def test_the_oldest_make_room(tmp_path, monkeypatch):
    """However much is recorded, the file stays about as large as it may be."""
    monkeypatch.setattr(journal_module, "CHECK_BYTES", 64 * 1024)
    monkeypatch.setattr(ledger, "STEP", 20)
    limit = 512 * 1024
    async with opened(tmp_path, max_size=limit) as journal:
        assert await journal.begin(entry("runs")) is None
        for start in range(0, 2000, 20):
            batch = [entry(f"u{n}") for n in range(start, start + 20)]
            await asyncio.gather(*map(journal.begin, batch))
            await asyncio.gather(
                *(journal.end(one, DONE._replace(payload=b"x" * 2000)) for one in batch)
            )
            await journal._stored()
        # It is trimmed beside the loop, and looked at after each CHECK_BYTES only.
        await until(lambda: size_of(tmp_path) < limit + 256 * 1024)
    kept = [uuid for uuid, _ in rows(tmp_path)]
    assert kept[0] == "runs"
    assert kept[1:] == [f"u{n}" for n in range(2000 - len(kept) + 1, 2000)]
    assert 100 < len(kept) < 400
    assert (tmp_path / "state" / "journal.db").stat().st_size < 4 * limit


def size_of(place):
    """Bytes of the file that hold something."""
    pages, free, each = (
        rows(place, f"PRAGMA {name}")[0][0]
        for name in ("page_count", "freelist_count", "page_size")
    )
    return (pages - free) * each


# Whatever order


class Model:
    """What the journal is to say, as a dict."""

    def __init__(self):
        self.jobs = {}  # uuid: [entry, outcome, sent, of this run]
        self.noticed = set()  # uuids

    def begin(self, one):
        known = self.jobs.get(one.uuid)
        if known is not None:
            before, outcome, _, mine = known
            if outcome and outcome.status != "again":
                return outcome
            if outcome is None and mine:
                if not (one.durable and one.attempt > before.attempt):
                    return RUNS
            elif not one.durable:
                return RUNS if outcome else records.UNKNOWN
        self.jobs[one.uuid] = [one, None, False, True]
        return None

    def end(self, one, outcome):
        known = self.jobs.get(one.uuid)
        if known is None or known[0].attempt <= one.attempt:
            self.jobs[one.uuid] = [known[0] if known else one, outcome, one.durable, True]

    def sent(self, one):
        self.jobs[one.uuid][2] = True

    def allows(self, verb, one):
        """Whether an agent would: it ends what has not ended, and sends what has."""
        outcome = self.jobs.get(one.uuid, [one, None])[1]
        if verb == "sent":
            return outcome is not None
        return verb == "begin" or one.durable or outcome is None

    def stored(self):
        """What was sent is known to be from now on, even after a crash."""
        self.noticed = {uuid for uuid, job in self.jobs.items() if job[2]}

    def reopen(self):
        """What is to be returned at the next start, and what may be, if this is a crash."""
        for job in self.jobs.values():
            job[3] = False
        mine = {uuid: job for uuid, job in self.jobs.items() if not job[0].durable}
        must = {uuid: job[1] for uuid, job in mine.items() if not job[2]}
        may = {uuid: job[1] for uuid, job in mine.items() if uuid not in self.noticed}
        return must, may


uuids = st.sampled_from("abcd")
# What is durable is so each time: it comes by another way.
entries = st.builds(
    lambda uuid, attempt: entry(uuid, durable=uuid in "cd", attempt=attempt if uuid in "cd" else 1),
    uuids,
    st.integers(1, 3),
)
steps = st.one_of(
    st.tuples(st.just("begin"), entries),
    st.tuples(st.just("end"), entries, st.sampled_from([DONE, FAILED, AGAIN])),
    st.tuples(st.just("sent"), entries),
    st.tuples(st.just("stored")),
    st.tuples(st.just("reopen")),
    st.tuples(st.just("crash")),
)


@settings(max_examples=100)
@given(st.lists(steps, max_size=30))
def test_any_order_of_steps_is_remembered_as_by_a_dict(tmp_path_factory, script):
    """Over any number of restarts, orderly or not."""
    asyncio.run(_follow(script, tmp_path_factory.mktemp("model")))


async def _follow(script, place):
    model = Model()
    path = str(place / "state" / "journal.db")
    journal = Journal(path)
    await journal.open()
    for verb, *arguments in [*script, ("reopen",)]:
        if verb in ("reopen", "crash"):
            await (journal.close() if verb == "reopen" else crash(journal))
            journal = Journal(path)
            left = {one.entry.uuid: one.outcome for one in await journal.open()}
            must, may = model.reopen()
            assert left == must if verb == "reopen" else must.items() <= left.items()
            assert left.items() <= may.items()
            for uuid in left.keys() - must.keys():
                model.jobs[uuid][2] = False
            assert journal.state().entries == len(model.jobs)
        elif verb == "stored":
            await journal._stored()
            model.stored()
        elif not model.allows(verb, arguments[0]):
            continue
        elif verb == "sent":
            journal.sent(*arguments)
            model.sent(*arguments)
        else:
            told = await getattr(journal, verb)(*arguments)
            assert told == getattr(model, verb)(*arguments)
    await journal.close()


async def crash(journal):
    """What the kernel does at a kill: files are closed, nothing more is written."""
    journal._poster.cancel()
    await asyncio.wait([journal._poster])
    journal._thread.shutdown()
    journal._ledger.close()
    journal._redo.close()
    journal._reader.close()
