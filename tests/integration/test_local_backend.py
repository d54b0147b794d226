"""The local backend: a UNIX socket, who may use it, and who gets which answer."""

import asyncio
import os
import signal
import socket
import stat
import subprocess
import sys
from contextlib import asynccontextmanager

import pytest

from ngcp_task_agent.backends import local
from ngcp_task_agent.errors import BackendError

from .alone import open_files
from .backends import answering, client, local_backend, receiving
from .waiting import until

MIB = 1024 * 1024


@pytest.fixture
def path(place):
    return place / "agent.sock"


async def test_a_request_is_one_line_and_so_is_its_answer(path):
    """With either end of line; empty lines do not count."""
    backend = local_backend(path)

    async with receiving(backend) as received, client(path) as (reader, writer):
        writer.write(b'{"a":1}\n\n\r\n{"b":2}\r\n')
        await until(lambda: len(received) == 2)
        backend.deliver(received[0].address, b"{}")

        assert await reader.readline() == b"{}\n"
        assert [delivery.payload for delivery in received] == [b'{"a":1}', b'{"b":2}']
        assert {delivery.local for delivery in received} == {True}
        assert len({delivery.address for delivery in received}) == 1


async def test_large_messages_pass_both_ways(path):
    """A request of the largest size that is looked at, an answer of the largest chunk."""
    backend = local_backend(path)
    line = b"x" * 5 * MIB

    async with answering(backend):
        reader, writer = await asyncio.open_unix_connection(path, limit=8 * MIB)
        writer.write(line + b"\n")
        assert await reader.readline() == line + b"\n"
        writer.close()


async def test_clients_get_their_own_answers_only(path):
    """Thirty at once, many requests each."""
    backend = local_backend(path)

    async def ask(number):
        wanted = {b"%d-%d\n" % (number, request) for request in range(20)}
        async with client(path) as (reader, writer):
            writer.writelines(wanted)
            heard = {await reader.readline() for _ in wanted}
            writer.write_eof()
            assert heard == wanted

    async with answering(backend), asyncio.TaskGroup() as group:
        for number in range(30):
            group.create_task(ask(number))


async def test_answers_keep_their_order(path):
    """`accepted` before `done`."""
    backend = local_backend(path)

    async with receiving(backend) as received, client(path) as (reader, writer):
        writer.write(b"request\n")
        await until(lambda: received)
        for number in range(1000):
            backend.deliver(received[0].address, b"%d" % number)
        assert [await reader.readline() for _ in range(1000)] == [b"%d\n" % n for n in range(1000)]


async def test_a_client_that_has_closed_its_sending_side_gets_its_answer(path):
    """As `nc -N` and many a script do it."""
    backend = local_backend(path)

    async with receiving(backend) as received, client(path) as (reader, writer):
        writer.write(b"request\n")
        writer.write_eof()
        await until(lambda: received)
        await asyncio.sleep(0.3)  # longer than it takes to notice an end
        backend.deliver(received[0].address, b"late")

        assert await reader.readline() == b"late\n"


async def test_a_last_line_without_its_end_is_a_request(path):
    """`printf '{…}' | nc -N -U agent.sock`."""
    backend = local_backend(path)

    async with answering(backend), client(path) as (reader, writer):
        writer.write(b"request")
        writer.write_eof()

        assert await reader.readline() == b"request\n"


async def test_an_answer_to_a_client_that_has_gone_is_counted(path):
    """And disturbs nobody."""
    backend = local_backend(path)

    async with receiving(backend) as received, client(path) as (reader, writer):
        async with client(path) as (_, second):
            second.write(b"second\n")
            await until(lambda: received)
        await until(lambda: received[0].address not in backend._clients)
        backend.deliver(received[0].address, b"x")

        assert backend.state().dropped == 1
        writer.write(b"first\n")
        await until(lambda: len(received) == 2)
        backend.deliver(received[1].address, b"answer")
        assert await reader.readline() == b"answer\n"


async def test_a_client_that_never_reads_is_cut_off(path, monkeypatch, caplog):
    """What it leaves unread is kept in memory, for a while."""
    monkeypatch.setattr(local, "UNREAD", 4 * MIB)
    backend = local_backend(path)

    async with receiving(backend) as received, client(path) as (reader, writer):
        writer.write(b"request\n")
        await until(lambda: received)
        for _ in range(20):
            backend.deliver(received[0].address, b"x" * MIB)
        await until(lambda: received[0].address not in backend._clients)

        async with asyncio.timeout(5):
            assert len(await read_to_end(reader)) < 8 * MIB
        assert backend.state().dropped > 0
    assert "does not read" in caplog.text


async def read_to_end(reader):
    """All that comes, whichever way it ends."""
    pieces = []
    try:
        while piece := await reader.read(MIB):
            pieces.append(piece)
    except OSError:
        pass
    return b"".join(pieces)


async def test_flush_waits_for_a_slow_reader(path):
    """A sender of many chunks is paced and does not have its client cut off."""
    backend = local_backend(path)

    async with receiving(backend) as received, client(path) as (reader, writer):
        writer.write(b"request\n")
        await until(lambda: received)
        backend.deliver(received[0].address, b"x" * 3 * MIB)
        flushing = asyncio.create_task(backend.flush(received[0].address))
        await asyncio.sleep(0.1)
        assert not flushing.done()

        assert len(await reader.readexactly(3 * MIB + 1)) == 3 * MIB + 1
        await until(flushing.done)


async def test_a_line_without_end_is_refused(path, monkeypatch, caplog):
    """Somebody sends zeros; others are served."""
    monkeypatch.setattr(local, "LONGEST_LINE", MIB)
    backend = local_backend(path)

    async with answering(backend):
        async with client(path) as (reader, writer):
            writer.write(b"x" * 3 * MIB)
            async with asyncio.timeout(5):
                assert await read_to_end(reader) == b""
        async with client(path) as (reader, writer):
            writer.write(b"request\n")
            assert await reader.readline() == b"request\n"
    assert "a line of more than" in caplog.text


@pytest.mark.parametrize(
    ("fields", "mode"), [({}, 0o600), ({"mode": "0660"}, 0o660), ({"mode": "0666"}, 0o666)]
)
async def test_mode(path, fields, mode):
    """Whatever the umask; nobody else's mode."""
    backend = local_backend(path, **fields)
    before = os.umask(0o077)
    try:
        async with receiving(backend):
            assert stat.S_IMODE(path.stat().st_mode) == mode
            assert stat.S_ISSOCK(path.stat().st_mode)
    finally:
        assert os.umask(before) == 0o077


async def test_a_directory_that_is_missing_is_made(place):
    """/run is empty after a boot; everybody may look into it, and nobody write."""
    path = place / "run" / "agent" / "agent.sock"

    async with receiving(local_backend(path)):
        assert stat.S_IMODE(path.parent.stat().st_mode) & 0o022 == 0
        assert path.exists()


async def test_a_stale_socket_is_replaced(path):
    """Left behind by a daemon that was killed."""
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    backend = local_backend(path)

    async with answering(backend), client(path) as (reader, writer):
        writer.write(b"request\n")
        assert await reader.readline() == b"request\n"


async def test_a_socket_of_a_daemon_that_was_killed_is_replaced(path):
    """With its lock, which dies with it."""
    code = (
        "import asyncio, sys, time\n"
        "from ngcp_task_agent.backends.local import LocalBackend\n"
        "from ngcp_task_agent.options import Options\n"
        "async def main():\n"
        "    backend = LocalBackend(Options({'path': sys.argv[1]}, 'x'))\n"
        "    await backend.open()\n"
        "    print('open', flush=True)\n"
        "    await asyncio.sleep(60)\n"
        "asyncio.run(main())\n"
    )
    other = await asyncio.create_subprocess_exec(
        sys.executable, "-c", code, str(path), stdout=subprocess.PIPE
    )
    assert await other.stdout.readline() == b"open\n"
    backend = local_backend(path)
    with pytest.raises(BackendError, match="in use"):
        await backend.open()
    other.send_signal(signal.SIGKILL)
    await other.wait()

    async with answering(local_backend(path)), client(path) as (reader, writer):
        writer.write(b"request\n")
        assert await reader.readline() == b"request\n"


async def test_the_socket_of_a_living_daemon_is_not_stolen(path):
    """The second one says so; the first one goes on, also after the second has ended."""
    first, second = local_backend(path), local_backend(path)
    async with answering(first):
        with pytest.raises(BackendError, match=f"^{path}: in use by another agent$"):
            await second.open()
        await second.stop()
        await second.close()

        async with client(path) as (reader, writer):
            writer.write(b"request\n")
            assert await reader.readline() == b"request\n"


async def test_a_file_that_is_no_socket_is_not_removed(path):
    """A wrong path in agent.yml, and an agent that is root."""
    path.write_text("something else")
    backend = local_backend(path)

    try:
        with pytest.raises(BackendError):
            await backend.open()
        assert path.read_text() == "something else"
    finally:
        await backend.stop()
        await backend.close()


async def test_stop_takes_the_socket_away_and_close_the_connections(path):
    """Answers may be delivered in between."""
    before = open_files()
    backend = local_backend(path)

    async with client_of(backend, path) as (reader, address):
        await backend.stop()
        assert not path.exists()
        backend.deliver(address, b"last")
        await backend.close()

        assert await reader.read() == b"last\n"
    assert open_files() == before


@asynccontextmanager
async def client_of(backend, path):
    """A client with one request, of a backend that the test closes itself."""
    await backend.open()
    receiving = asyncio.create_task(anext(backend.receive()))
    async with client(path) as (reader, writer):
        writer.write(b"request\n")
        yield reader, (await receiving).address
