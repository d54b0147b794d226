import asyncio
import gc
import os
import tempfile
import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ngcp_task_agent import spool
from ngcp_task_agent.errors import BrokerError
from ngcp_task_agent.spool import Spool

from ..helpers import until


@pytest.fixture
def small(monkeypatch):
    """Limits that a test reaches without writing megabytes."""
    monkeypatch.setattr(spool, "MEMORY", 100)
    monkeypatch.setattr(spool, "BLOCK", 64)


async def collected(pieces, spool_dir=""):
    kept = Spool(str(spool_dir))
    for piece in pieces:
        await kept.write(piece)
    return kept


def descriptors():
    gc.collect()
    return len(os.listdir("/proc/self/fd"))


async def test_little_output_stays_in_memory(small, tmp_path):
    """Most output is a line or two, and costs no file."""
    before = descriptors()

    kept = await collected([b"one\n", b"two\n"], tmp_path)

    assert (kept.text(), kept.size) == ("one\ntwo\n", 8)
    assert descriptors() == before


async def test_no_output_is_the_empty_text():
    """Never null: clients join and print it."""
    kept = Spool()

    assert kept.text() == ""
    assert "".join(kept.blocks()) == ""


async def test_much_output_goes_to_disk(small, tmp_path):
    """In a file without a name, so that nobody else sees it and nothing is left."""
    before = descriptors()

    kept = await collected([b"x" * 60] * 5, tmp_path)

    assert kept.text() == "x" * 300
    assert kept.size == 300
    assert descriptors() == before + 1
    assert list(tmp_path.iterdir()) == []
    kept.discard()


async def test_discard_gives_back_memory_and_disk(small, tmp_path):
    """Thousands of jobs a day must leave no descriptor behind."""
    before = descriptors()
    kept = await collected([b"x" * 60] * 5, tmp_path)
    kept.discard()
    kept.discard()
    await kept.write(b"x" * 1000)

    assert descriptors() == before
    assert kept.size == 0


@pytest.mark.parametrize("size", [0, 1, 60, 99, 100])
@pytest.mark.parametrize("pieces", [0, 1, 5])
async def test_the_first_bytes_of_it_may_be_kept(small, tmp_path, pieces, size):
    """An output that is too long is cut, wherever it was kept, and its disk given back."""
    before = descriptors()
    kept = await collected([b"0123456789" * 6] * pieces, tmp_path)

    kept.cut(size)

    assert kept.text() == ("0123456789" * 6 * pieces)[:size]
    assert kept.size == len(kept.text())
    assert descriptors() == before


async def test_nothing_is_taken_once_it_is_closed():
    """The answer has been sent; a broker that goes on must not cost memory."""
    kept = await collected([b"before"])

    kept.closed = True
    await kept.write(b"after")

    assert kept.text() == "before"


async def test_bytes_that_are_no_utf8_are_replaced():
    """Programs print anything."""
    assert (await collected([b"a\xffb", b"\xe2\x82"])).text() == "a\ufffdb\ufffd"


async def test_a_disk_that_takes_nothing_is_a_broker_error(small, tmp_path):
    """The client learns why, and the daemon goes on."""
    kept = Spool(str(tmp_path / "gone"))

    with pytest.raises(BrokerError, match=r"^the output cannot be kept: No such file"):
        await kept.write(b"x" * 200)


async def test_blocks_may_be_read_twice(small, tmp_path):
    """The first response says how many there are, so they are counted first."""
    kept = await collected(["smörgås ".encode()] * 50, tmp_path)

    assert "".join(kept.blocks()) == "".join(kept.blocks()) == "smörgås " * 50
    assert all(len(block) <= 100 for block in kept.blocks())
    kept.discard()


async def test_two_writers_at_once_lose_nothing(small, tmp_path):
    """A broker that reads two pipes writes from two tasks; one waits for the disk meanwhile."""
    kept = Spool(str(tmp_path))
    lines = [b"%03d %s\n" % (number, b"x" * 40) for number in range(100)]

    await asyncio.gather(*(kept.write(line) for line in lines))
    text, size = kept.text(), kept.size
    kept.discard()

    assert sorted(text.encode().splitlines(True)) == lines
    assert size == sum(map(len, lines))


async def test_discarded_while_the_disk_is_written_leaves_nothing(small, tmp_path, monkeypatch):
    """A job answered at its time limit is discarded while a thread still makes the file."""
    make, begun = tempfile.TemporaryFile, threading.Event()

    def make_slowly(**kwargs):
        begun.set()
        time.sleep(0.1)
        return make(**kwargs)

    monkeypatch.setattr(spool.tempfile, "TemporaryFile", make_slowly)
    kept = Spool(str(tmp_path))
    writing = asyncio.ensure_future(kept.write(b"x" * 1000))
    await until(begun.is_set)
    before = descriptors()
    writing.cancel()
    await asyncio.gather(writing, return_exceptions=True)
    kept.discard()
    await asyncio.get_running_loop().shutdown_default_executor()
    after = descriptors()
    kept.discard()

    assert after <= before


@settings(max_examples=30)
@given(st.lists(st.binary(max_size=90) | st.text(max_size=30).map(str.encode), max_size=12))
def test_the_keptis_what_was_written(pieces):
    """Wherever it was kept, and wherever a character was torn between two pieces."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(spool, "MEMORY", 100)
        patch.setattr(spool, "BLOCK", 7)
        kept = asyncio.run(collected(pieces))
        whole = b"".join(pieces)

        assert kept.size == len(whole)
        assert kept.text() == "".join(kept.blocks()) == whole.decode("utf-8", "replace")
        kept.discard()
