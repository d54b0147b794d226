"""Monitoring's HTTP: what a collector asks for, and what a hostile client gets."""

import asyncio
import functools
import inspect
import os
import socket
import stat
import subprocess
import sys
import time
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from ngcp_task_agent.listening import Listening
from ngcp_task_agent.metrics import endpoint as module
from ngcp_task_agent.metrics.endpoint import LARGEST, MOST, Answer, Endpoint

from .loops import both_loops, run
from .redis_server import free_port
from .waiting import until

LARGE = b"x" * 8 * 1024 * 1024  # bytes; more than any socket holds


async def alive():
    return Answer(200, b"ok\n")


async def large():
    return Answer(200, LARGE)


async def broken():
    raise ZeroDivisionError


async def endless():
    await asyncio.Event().wait()


def on_both(test):
    """Run *test* in asyncio's loop and in uvloop: each has its own transports and timeouts."""

    @functools.wraps(test)
    def on(loop, **arguments):
        run(test(**arguments), 15, loop)

    names = ("loop", *inspect.signature(test).parameters)
    kind = inspect.Parameter.KEYWORD_ONLY
    on.__signature__ = inspect.Signature([inspect.Parameter(name, kind) for name in names])
    return both_loops(on)


PATHS = {"/livez": alive, "/large": large, "/broken": broken, "/endless": endless}


@pytest.fixture
def where(tmp_path):
    return Listening(path=str(tmp_path / "m.sock"), mode=0o640)


@asynccontextmanager
async def listening(where):
    """An endpoint, and a way to open connections to it."""
    served = Endpoint(dict(PATHS))
    await served.open(where)

    async def connect():
        if where.path:
            return await asyncio.open_unix_connection(where.path)
        return await asyncio.open_connection(where.host, where.port)

    opened = []

    async def talk(data):
        reader, writer = await connect()
        opened.append(writer)
        writer.write(data)
        return reader, writer

    talk.served = served
    try:
        yield talk
    finally:
        for writer in opened:
            writer.transport.abort()
        await served.close()


async def said(talk, data):
    """Status line and the rest of what comes back until the other side hangs up."""
    reader, _ = await talk(data)
    received = await asyncio.wait_for(reader.read(), 10)
    line, _, rest = received.partition(b"\r\n")
    return line.decode(), rest


def kind(where):
    """What is there: nothing, a socket, or a file's text."""
    path = Path(where.path)
    if not path.exists():
        return "nothing"
    return "a socket" if path.is_socket() else path.read_text()


def write(where, text):
    Path(where.path).write_text(text)


def get(path, *more):
    return "\r\n".join((f"GET {path} HTTP/1.1", "Host: x", *more, "", "")).encode()


@on_both
async def test_a_path_is_answered_and_the_connection_ends(where):
    """One question, one answer: nothing stays open between two scrapes."""
    async with listening(where) as talk:
        line, rest = await said(talk, get("/livez?x=1"))

    head, _, body = rest.partition(b"\r\n\r\n")
    assert line == "HTTP/1.1 200 OK"
    assert body == b"ok\n"
    assert b"Content-Length: 3\r\n" in head
    assert b"Connection: close" in head


@on_both
async def test_head_is_answered_without_a_body(where):
    """Load balancers ask so."""
    async with listening(where) as talk:
        line, rest = await said(talk, b"HEAD /livez HTTP/1.0\r\n\r\n")

    assert line == "HTTP/1.1 200 OK"
    assert rest.endswith(b"\r\n\r\n")
    assert b"Content-Length: 3\r\n" in rest


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (get("/"), 404),
        (get("/livez/"), 404),
        (get("/../livez"), 404),
        (b"POST /livez HTTP/1.1\r\nContent-Length: 5\r\n\r\nhello", 405),
        (b"GET /livez\r\n\r\n", 400),
        (b"GET  /livez HTTP/1.1\r\n\r\n", 400),
        (b"GET /livez HTTP/2.0\r\n\r\n", 400),
        (b"\xff\x00\r\n\r\n", 400),
        (b"\x16\x03\x01\x00\xa5\r\n\r\n", 400),
        (get("/livez", "X: " + "y" * LARGEST), 431),
        (get("/livez", *["X: y"] * LARGEST), 431),
        (b"GET /" + b"x" * 2 * LARGEST, 431),
        (get("/broken"), 500),
    ],
)
@on_both
async def test_what_is_no_question_is_told_so(where, data, status):
    """And the next one is answered."""
    async with listening(where) as talk:
        line, _ = await said(talk, data)
        after, _ = await said(talk, get("/livez"))

    assert line.startswith(f"HTTP/1.1 {status} ")
    assert after == "HTTP/1.1 200 OK"


@on_both
async def test_who_says_nothing_is_hung_up_on(where, monkeypatch):
    """A slow client, header by header, has a time for all of it and not for each."""
    monkeypatch.setattr(module, "LONGEST", 0.3)
    async with listening(where) as talk:
        began = time.monotonic()
        silent, _ = await talk(b"")
        slow, writer = await talk(b"GET /livez HTTP/1.1\r\n")

        async def drip():
            while True:
                writer.write(b"X: y\r\n")
                await asyncio.sleep(0.02)

        dripping = asyncio.create_task(drip())
        received = [await asyncio.wait_for(_rest(one), 5) for one in (silent, slow)]
        dripping.cancel()

        assert received == [b"", b""]
        assert 0.25 < time.monotonic() - began < 3


async def _rest(reader):
    try:
        return await reader.read()
    except ConnectionError:
        return b""


@on_both
async def test_who_does_not_read_is_hung_up_on(where, monkeypatch):
    """Else each such client keeps a whole answer in memory."""
    monkeypatch.setattr(module, "LONGEST", 0.3)
    async with listening(where) as talk:
        reader, writer = await talk(get("/large"))
        writer.transport.pause_reading()
        await until(lambda: talk.served._open, 5, "a connection")
        await until(lambda: not talk.served._open, 5, "its end")
        writer.transport.resume_reading()

        assert len(await _rest(reader)) < len(LARGE)


@on_both
async def test_who_does_not_read_the_end_is_hung_up_on(where, monkeypatch):
    """What is left is less than a transport calls much, and would stay for ever."""
    monkeypatch.setattr(module, "LONGEST", 0.5)
    async with listening(where) as talk:
        _, unread = await _unread(talk, "/large", 1024 * 1024)
        held = len(LARGE) - unread  # by the kernel, for a client that reads nothing

        async def slightly_more():
            return Answer(200, b"x" * (held + 16 * 1024))

        talk.served._answers["/more"] = slightly_more
        transport, unread = await _unread(talk, "/more", 1)

        assert unread < 32 * 1024
        await until(lambda: transport.get_write_buffer_size() == 0, 5, "the rest given up")


async def _unread(talk, path, least):
    """Ask and read nothing: the server's transport, and how many bytes wait there."""
    before = len(talk.served._open)
    _, writer = await talk(get(path))
    writer.transport.pause_reading()
    await until(lambda: len(talk.served._open) > before, 5, "a connection")
    transport = list(talk.served._open.values())[-1].transport
    await until(lambda: transport.get_write_buffer_size() >= least, 5, "more than is taken")
    return transport, transport.get_write_buffer_size()


@on_both
async def test_who_reads_gets_all_of_a_large_answer(where):
    """Many tasks make a long text."""
    async with listening(where) as talk:
        _, rest = await said(talk, get("/large"))

    assert rest.partition(b"\r\n\r\n")[2] == LARGE


@on_both
async def test_a_question_without_an_end_is_ended(where, monkeypatch):
    """An answer that hangs must not hold its place for ever."""
    monkeypatch.setattr(module, "LONGEST", 0.2)
    async with listening(where) as talk:
        reader, _ = await talk(get("/endless"))

        assert await asyncio.wait_for(_rest(reader), 5) == b""


@on_both
async def test_many_connections_are_bounded_and_the_oldest_go(where):
    """Whoever holds them all does not keep the collector out."""
    async with listening(where) as talk:
        readers = [(await talk(b"GET "))[0] for _ in range(3 * MOST)]
        line, _ = await said(talk, get("/livez"))
        gone = [asyncio.create_task(_rest(reader)) for reader in readers[: 2 * MOST]]
        done, _ = await asyncio.wait(gone, timeout=5)
        kept = asyncio.create_task(_rest(readers[-1]))
        await asyncio.sleep(0)

        assert line == "HTTP/1.1 200 OK"
        assert len(done) == 2 * MOST
        assert not kept.done()
        kept.cancel()


@on_both
async def test_a_tcp_port_is_free_again_after_the_end():
    """A reload may come back to it."""
    where = Listening("127.0.0.1", free_port())
    for _ in range(2):
        async with listening(where) as talk:
            assert (await said(talk, get("/livez")))[0] == "HTTP/1.1 200 OK"


@on_both
async def test_a_socket_has_its_mode_from_the_first_moment(where, monkeypatch):
    """And its group; nobody slips in before."""
    modes = []

    def watched(path, *arguments):
        modes.append(stat.S_IMODE(os.lstat(path).st_mode))
        return real(path, *arguments)

    real = os.chown
    monkeypatch.setattr(os, "chown", watched)

    async with listening(where):
        modes.append(stat.S_IMODE(os.lstat(where.path).st_mode))

    assert modes == [0, 0o640]
    assert kind(where) == "nothing"


@on_both
async def test_a_stale_socket_is_replaced(where):
    """A daemon that was killed leaves one."""
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(where.path)

    async with listening(where) as talk:
        assert (await said(talk, get("/livez")))[0] == "HTTP/1.1 200 OK"


@on_both
async def test_a_socket_that_is_in_use_stays(where):
    """Two agents with one path: the second says so, and the first goes on."""
    async with listening(where) as talk:
        with pytest.raises(OSError, match="in use"):
            await Endpoint({}).open(where)

        assert (await said(talk, get("/livez")))[0] == "HTTP/1.1 200 OK"


@on_both
async def test_a_file_that_is_no_socket_stays(where):
    """A slip of the pen must not delete anything."""
    write(where, "mine")

    with pytest.raises(OSError, match="no socket"):
        await Endpoint({}).open(where)

    assert kind(where) == "mine"


@on_both
async def test_only_its_own_socket_is_removed(where):
    """Somebody else may have taken the path over."""
    async with listening(where):
        os.unlink(where.path)
        with socket.socket(socket.AF_UNIX) as other:
            other.bind(where.path)

    assert kind(where) == "a socket"


@on_both
async def test_the_end_does_not_wait_for_clients(where):
    """A collector that hangs must not delay the daemon's stop."""
    async with listening(where) as talk:
        reader, _ = await talk(get("/endless"))
        await said(talk, get("/livez"))  # the one before has been taken
        began = time.monotonic()

    assert time.monotonic() - began < 1
    assert asyncio.all_tasks() == {asyncio.current_task()}
    assert await _rest(reader) == b""


def test_the_library_is_not_loaded_where_it_is_off():
    """It takes memory and time that nobody has asked for."""
    code = "import sys, ngcp_task_agent.daemon; print('prometheus_client' in sys.modules)"

    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert found.stdout == "False\n"
