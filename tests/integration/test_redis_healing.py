"""The Redis backend when its server comes, goes, hangs or hangs up."""

import asyncio
import logging
import signal

import pytest

from ngcp_task_agent.backends import redis as redis_backend_module
from ngcp_task_agent.backends.redis import PING_INTERVAL, PONG_TIMEOUT

from .alone import open_files
from .backends import CONTROL, connected, disconnected, receiving, redis_backend
from .reaching import attempted, warnings
from .tcp_proxy import proxied
from .waiting import until

pytestmark = pytest.mark.redis

NOTICED = 15.0  # seconds of silence after which a dead connection has to be known


async def heard_all(heard, payloads, seconds=8.0):
    """Wait until exactly *payloads* have been heard, in this order."""
    await until(lambda: len(heard) >= len(payloads), seconds, f"{len(payloads)} responses")
    assert heard == payloads


def numbered(count):
    return [str(number).encode() for number in range(count)]


async def test_a_server_that_comes_later_is_found(make_server, caplog):
    """The machine starts, and the agent is faster."""
    caplog.set_level(logging.INFO)
    server = make_server()
    backend = redis_backend(unix_socket=str(server.path))

    async with receiving(backend) as received:
        await until(attempted(backend), 10)
        server.start()
        await connected(backend)
        await server.publish(CONTROL, b"x")
        await until(lambda: received)

    lines = warnings(caplog)
    assert [word in line for word, line in zip(("not reached", "connected"), lines, strict=True)]


async def test_responses_that_waited_for_the_first_connection_are_sent(make_server):
    """In their order, before newer ones."""
    server = make_server()
    backend = redis_backend(unix_socket=str(server.path))

    async with receiving(backend):
        for payload in numbered(700):
            backend.deliver("fb", payload)
        server.start(hidden=True)
        async with server.listener("fb") as heard:
            server.show()
            await connected(backend)
            backend.deliver("fb", b"newer")
            await heard_all(heard, [*numbered(700), b"newer"])


async def test_a_restarted_server_is_subscribed_to_again(server):
    """And what was to be said meanwhile is said, in order."""
    backend = redis_backend(unix_socket=str(server.path))

    async with receiving(backend, "a", "b") as received:
        await connected(backend)
        backend.deliver("fb", b"before")
        await backend.flush("fb")
        server.stop()
        await disconnected(backend)
        for payload in numbered(50):
            backend.deliver("fb", payload)

        server.start(hidden=True)
        async with server.listener("fb") as heard:
            server.show()
            await connected(backend)
            assert await server.publish("a", b"x") == 1
            assert await server.publish("b", b"y") == 1
            await heard_all(heard, numbered(50))
            await until(lambda: len(received) == 2)
        assert backend.state().dropped == 0


async def test_a_loss_and_a_return_are_one_line_each(server, caplog):
    """However many attempts lie between."""
    caplog.set_level(logging.INFO)
    backend = redis_backend(unix_socket=str(server.path))

    async with receiving(backend):
        await connected(backend)
        server.stop()
        await disconnected(backend)
        await until(attempted(backend), 10)
        server.start()
        await connected(backend)

    lines = warnings(caplog)
    assert len([line for line in lines if "connection lost" in line]) == 1
    assert len([line for line in lines if "connected, listening" in line]) == 2
    assert len(lines) <= 4  # why it is not reached may differ from why it was lost


async def test_a_publisher_that_was_hung_up_loses_nothing(server):
    """The connection was idle and the server had a limit."""
    backend = redis_backend(unix_socket=str(server.path))

    async with receiving(backend), server.listener("fb") as heard:
        await connected(backend)
        for number in range(5):
            backend.deliver("fb", str(number).encode())
            await backend.flush("fb")
            await server.kill(await server.publisher())
        assert backend.state().connected

        assert heard == numbered(5)


async def test_a_publisher_killed_amid_responses_loses_none(server):
    """One may come twice, with the same uuid; none is missing, none comes early."""
    backend = redis_backend(unix_socket=str(server.path))

    async with receiving(backend), server.listener("fb") as heard:
        await connected(backend)
        for number in range(3000):
            backend.deliver("fb", str(number).encode())
            if number % 500 == 250:
                await until(lambda: _has_publisher(server))
                await server.kill(await server.publisher())
        await until(lambda: heard and heard[-1] == b"2999", 8)

    assert list(dict.fromkeys(heard)) == numbered(3000)


async def _has_publisher(server):
    return len(await server.clients()) == 2


async def test_a_subscriber_that_was_hung_up_comes_back(server):
    """Within a moment, not after the next silence."""
    backend = redis_backend(unix_socket=str(server.path))

    async with receiving(backend) as received:
        await connected(backend)
        for number in range(4):
            await server.publish(CONTROL, str(number).encode())
            await until(lambda number=number: len(received) == number + 1)
            await server.kill_subscriber(3)

    assert [delivery.payload for delivery in received] == numbered(4)


async def test_connections_do_not_pile_up(server):
    """Neither here nor at the server, after many of them."""
    backend = redis_backend(unix_socket=str(server.path))

    async with receiving(backend):
        await connected(backend)
        backend.deliver("fb", b"x")
        await backend.flush("fb")
        before = open_files()
        for _ in range(8):
            await server.kill(await server.publisher())
            await server.kill_subscriber()
            backend.deliver("fb", b"x")
            await backend.flush("fb")

        assert len(await server.clients()) == 2
        assert len(open_files()) == len(before)


async def test_a_half_open_connection_is_noticed_in_time(make_server):
    """Nothing is closed, nothing is refused, no byte comes through any more: a silent bus
    looks the same. Found out, it connects anew and sends what has waited since."""
    assert PING_INTERVAL + PONG_TIMEOUT < NOTICED
    server = make_server()
    server.start(tcp=True)
    now = asyncio.get_running_loop().time

    async with proxied(server.port) as proxy:
        backend = redis_backend(host="127.0.0.1", port=proxy.port)
        async with receiving(backend) as received, server.listener("fb") as heard:
            await connected(backend)
            backend.deliver("fb", b"before")
            await heard_all(heard, [b"before"])
            began = now()
            proxy.swallow()
            backend.deliver("fb", b"into the hole")

            await disconnected(backend, NOTICED + 5)
            noticed = now() - began
            assert backend.state().sound
            backend.deliver("fb", b"after")
            await connected(backend)
            await server.publish(CONTROL, b"x")
            await until(lambda: received)
            # What the hole has acknowledged may be lost, and may as well come again.
            await until(lambda: heard[-1] == b"after")

    assert noticed < NOTICED


async def test_a_server_that_hangs_at_the_start_is_tried_again(make_server, monkeypatch, caplog):
    """It accepts and says nothing, as one that swaps or is being debugged."""
    monkeypatch.setattr(redis_backend_module, "PONG_TIMEOUT", 0.2)
    server = make_server()
    server.start()
    server.signal(signal.SIGSTOP)
    backend = redis_backend(unix_socket=str(server.path))

    async with receiving(backend) as received:
        await until(attempted(backend), 10)
        assert not backend.state().connected
        server.signal(signal.SIGCONT)
        await connected(backend)
        await server.publish(CONTROL, b"x")
        await until(lambda: received)

    assert len(warnings(caplog)) == 1


async def test_a_silent_bus_is_no_dead_one(server, monkeypatch, caplog):
    """Each silence is answered by a PONG, on the connection that listens."""
    monkeypatch.setattr(redis_backend_module, "PING_INTERVAL", 0.05)
    backend = redis_backend(unix_socket=str(server.path))

    async with receiving(backend) as received:
        await connected(backend)
        before = await server.subscriber()
        await until(lambda: _asked(server, 5))
        await server.publish(CONTROL, b"x")
        await until(lambda: received)
        assert (await server.subscriber())["id"] == before["id"]

    assert warnings(caplog) == []


async def _asked(server, count):
    async with server.client() as client:
        stats = await client.info("commandstats")
    return stats.get("cmdstat_ping", {"calls": 0})["calls"] >= count


async def test_stop_ends_receive_while_the_server_is_away(make_server):
    """Whatever it is waiting for: `receiving` fails if it does not."""
    server = make_server()
    backend = redis_backend(unix_socket=str(server.path))

    async with receiving(backend):
        await until(attempted(backend), 10)


async def test_stop_ends_receive_while_the_server_hangs(make_server):
    """In the middle of the greeting."""
    server = make_server()
    server.start()
    server.signal(signal.SIGSTOP)
    backend = redis_backend(unix_socket=str(server.path))

    async with receiving(backend):
        await until(lambda: backend.state().sound)
    server.signal(signal.SIGCONT)
