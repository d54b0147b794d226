"""What a function may use of its context where no agent is around, and as one calls it."""

import asyncio

import pytest

from ngcp_task_agent import context
from ngcp_task_agent.context import Context, Request, as_bytes, current, progress


class Link:
    """Keeps what goes to the agent."""

    def __init__(self, followed=True):
        self.followed = followed
        self.cancelled = False
        self.attends = 0
        self.pieces, self.lines = [], []

    def progress(self, piece):
        self.pieces.append(piece)
        return context.NOTHING

    def log(self, level, text):
        self.lines.append((level, text))

    def attended(self):
        self.attends += 1


@pytest.fixture
def link():
    return Link()


@pytest.fixture
def made(link):
    return Context(Request("ping", "u"), None, link)


def test_outside_of_a_job_progress_says_nothing():
    """So that a function can be tried on its own."""
    progress("half")


def test_outside_of_a_job_there_is_no_context():
    """And the error says whose it would be."""
    with pytest.raises(RuntimeError, match="no job runs here"):
        current()


def test_each_asyncio_task_has_its_own(link):
    """Jobs run side by side in one loop."""

    async def job(uuid):
        context.enter(Context(Request("ping", uuid), None, link))
        await asyncio.sleep(0)
        return current().request.uuid

    async def jobs():
        return await asyncio.gather(job("a"), job("b"))

    assert asyncio.run(jobs()) == ["a", "b"]


def test_who_asks_for_the_context_is_taken_to_attend(link, made):
    """To the flag `cancelled`: it is not ended at once."""
    context.enter_process(made)
    try:
        progress("half")
        assert link.attends == 0
        assert current() is made
        assert link.attends == 1
    finally:
        context.enter_process(None)


def test_progress_may_be_awaited_or_not(link, made):
    """The same helper serves plain functions and coroutines."""

    async def both():
        made.progress("one")
        await made.progress({"done": 50})
        link.followed = False
        await made.progress(object())  # nobody sees it

    asyncio.run(both())

    assert link.pieces == [b"one", b'{"done":50}\n']


@pytest.mark.parametrize("piece", [object(), {1, 2}, 2**70], ids=repr)
def test_a_piece_needs_a_form(piece):
    """A mistake of the function's is told to it."""
    with pytest.raises(TypeError, match="the piece is not JSON"):
        as_bytes(piece)


def test_a_piece_is_always_utf_8():
    """Half a surrogate pair is none."""
    assert as_bytes("a\ud800") == b"a?"
    assert as_bytes(bytearray(b"\xff")) == b"\xff"


@pytest.mark.parametrize(
    ("message", "arguments", "expected"),
    [
        ("100% sure", (), "100% sure"),
        ("%d of %s", (3, "x"), "3 of x"),
        ("%(a)s", ({"a": 1},), "1"),
        ("%d", ("x",), "%d ('x',)"),
        (7, (), "7"),
    ],
)
def test_a_log_line_takes_arguments_as_in_logging(link, made, message, arguments, expected):
    """Wrong ones end no job."""
    made.log.warning(message, *arguments)

    assert link.lines == [(context.WARNING, expected)]


def test_an_exception_is_logged_with_its_traceback(link, made):
    """As `logging` does it."""
    try:
        raise ValueError("no such user")
    except ValueError:
        made.log.exception("failed")

    assert link.lines[0] == (context.ERROR, "failed")
    assert "ValueError: no such user" in link.lines[1][1]
