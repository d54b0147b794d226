import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ngcp_task_agent import live
from ngcp_task_agent.live import Live
from ngcp_task_agent.messages import encode

from ..helpers import until


class Reader:
    """A client that reads along.

    Attributes:
        pieces: What has come, with the loop time of each.
        away: Set while the bus does not take anything.
    """

    def __init__(self):
        self.pieces = []
        self.times = []
        self.there = asyncio.Event()
        self.there.set()
        self.live = Live(self._take, self.there.wait)

    def _take(self, piece):
        self.pieces.append(piece)
        self.times.append(asyncio.get_running_loop().time())

    def text(self, stream="stdout"):
        return "".join(piece.text for piece in self.pieces if piece.stream == stream)


async def test_the_first_piece_leaves_at_once():
    """Who reads along wants to see that it has begun."""
    reader = Reader()

    await reader.live.write("stdout", b"one\n")
    await until(lambda: reader.pieces, 0.04)

    assert reader.pieces[0] == ("stdout", 1, 0, "one\n")
    await reader.live.finish({})


async def test_many_small_ones_become_few():
    """At most 20 a second, whatever a program does; none of it is lost, none is late."""
    reader = Reader()
    for number in range(200):
        await reader.live.write("stdout", b"%03d\n" % number)
        await asyncio.sleep(0.002)
    await reader.live.finish({})

    gaps = [b - a for a, b in zip(reader.times, reader.times[1:], strict=False)]
    assert reader.text() == "".join(f"{number:03}\n" for number in range(200))
    assert min(gaps) >= live.INTERVAL - 0.002
    assert len(reader.pieces) <= 20 * (reader.times[-1] - reader.times[0]) + 1.1


async def test_both_streams_share_one_numbering_and_one_rate():
    """A gap in `seq` is a loss; the offsets are each stream's own."""
    reader = Reader()
    for _ in range(10):
        await reader.live.write("stdout", b"out\n")
        await reader.live.write("stderr", b"error\n")
        await asyncio.sleep(0.03)
    await reader.live.finish({})

    assert [piece.seq for piece in reader.pieces] == list(range(1, len(reader.pieces) + 1))
    for name, text in (("stdout", "out\n"), ("stderr", "error\n")):
        offset = 0
        for piece in reader.pieces:
            if piece.stream == name:
                assert piece.offset == offset
                offset += len(piece.text)
        assert reader.text(name) == text * 10
    seconds = reader.times[-1] - reader.times[0]
    assert len(reader.pieces) <= 20 * seconds + 2.1


async def test_a_bus_that_is_away_stops_the_writer():
    """And nobody else: nothing piles up in the queue that all jobs share."""
    reader = Reader()
    reader.there.clear()
    written = 0

    async def write():
        nonlocal written
        for _ in range(100):
            await reader.live.write("stdout", b"x" * 10_000)
            written += 10_000

    writing = asyncio.ensure_future(write())
    await asyncio.sleep(0.3)
    assert len(reader.pieces) == 1
    assert written <= 2 * live.ROOM
    reader.there.set()
    await until(lambda: len(reader.pieces) > 2)
    writing.cancel()
    await reader.live.finish({})


async def test_the_end_does_not_wait_for_the_bus():
    """The last answer must come out, whoever reads along or does not."""
    reader = Reader()
    reader.there.clear()
    await reader.live.write("stdout", b"one")
    await until(lambda: reader.pieces)
    await reader.live.write("stdout", b"two")

    async with asyncio.timeout(1):
        await reader.live.finish({"stdout": b"three"})

    assert reader.text() == "onetwothree"


async def test_a_writer_that_waits_is_let_go_at_the_end():
    """It belongs to a broker that is being ended."""
    reader = Reader()
    reader.there.clear()
    writing = asyncio.ensure_future(reader.live.write("stdout", b"x" * 300_000))
    await until(lambda: reader.pieces)

    await reader.live.finish({})

    async with asyncio.timeout(1):
        await writing


@pytest.mark.parametrize("data", [b"\0" * 100_000, b"\xff" * 100_000, b"x" * 200_000])
async def test_no_message_is_larger_than_64_kib(data):
    """Encoded: a NUL takes six bytes, a byte that is no UTF-8 three."""
    reader = Reader()

    await reader.live.write("stdout", data)
    await reader.live.finish({})

    assert max(len(encode(piece.text)) for piece in reader.pieces) <= live.LONGEST
    assert reader.text() == data.decode("utf-8", "replace")


@settings(max_examples=40, deadline=None)
@given(st.lists(st.binary(max_size=40) | st.text(max_size=12).map(str.encode), max_size=10))
def test_no_character_is_torn(parts):
    """Wherever the program was interrupted in writing it."""

    async def run():
        reader = Reader()
        for part in parts:
            await reader.live.write("stdout", part)
            await asyncio.sleep(0)
        await reader.live.finish({})
        return reader

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(live, "INTERVAL", 0.0)
        reader = asyncio.run(run())
    whole = b"".join(parts)

    assert reader.text() == whole.decode("utf-8", "replace")
    assert all(p.offset == len(whole[: p.offset]) for p in reader.pieces)
