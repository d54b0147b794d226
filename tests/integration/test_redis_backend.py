"""The Redis backend and a real server: channels, order, limits."""

import asyncio
import threading
from contextlib import asynccontextmanager

import pytest
import redis

from .alone import open_files
from .backends import CONTROL, connected, receiving, redis_backend
from .loops import both_loops
from .waiting import until

pytestmark = pytest.mark.redis


def numbered(count, start=1):
    """Payloads that tell their place."""
    return [str(number).encode() for number in range(start, start + count)]


async def test_a_request_arrives_as_it_was_sent(server):
    """Bytes are bytes: the backend knows nothing of requests."""
    payloads = [b"", b"{}", b"\xff\0\r\n", b"x" * 1_000_000, "ä".encode()]
    backend = redis_backend(unix_socket=str(server.path))

    async with receiving(backend) as received:
        await connected(backend)
        for payload in payloads:
            await server.publish(CONTROL, payload)
        await until(lambda: len(received) == len(payloads))

    assert [delivery.payload for delivery in received] == payloads
    assert {delivery.control_channel for delivery in received} == {CONTROL}
    assert {delivery.local for delivery in received} == {True}


async def test_requests_after_a_large_one_arrive_in_order(server):
    """What is done to give its memory back must not swallow or reorder messages."""
    backend = redis_backend(unix_socket=str(server.path))
    payloads = [b"x" * 5_000_000, *numbered(50), b"y" * 2_000_000, *numbered(50)]

    async with receiving(backend) as received, server.client() as client:
        await connected(backend)
        for payload in payloads:
            await client.publish(CONTROL, payload)
        await until(lambda: len(received) == len(payloads))
        assert backend.state().connected

    assert [delivery.payload for delivery in received] == payloads


async def test_responses_leave_in_order(server):
    """More of them than go out at once."""
    backend = redis_backend(unix_socket=str(server.path))

    async with receiving(backend), server.listener("fb") as heard:
        await connected(backend)
        for payload in numbered(2000):
            backend.deliver("fb", payload)
        await backend.flush("fb")
        await until(lambda: len(heard) == 2000)

    assert heard == numbered(2000)


async def test_flush_means_that_the_server_has_it(server):
    """A sender of many chunks relies on it."""
    backend = redis_backend(unix_socket=str(server.path))

    async with receiving(backend):
        backend.deliver("fb", b"x")
        await backend.flush("fb")
        stats = await server.call("INFO", "commandstats")

    assert stats["cmdstat_publish"]["calls"] == 1


async def test_responses_may_still_be_delivered_after_stop(server):
    """The last answers of jobs that were ended."""
    backend = redis_backend(unix_socket=str(server.path))

    async with server.listener("fb") as heard:
        async with receiving(backend):
            await connected(backend)
            await backend.stop()
            backend.deliver("fb", b"last")
        await until(lambda: heard == [b"last"])


async def test_a_channel_is_subscribed_once_however_many_tasks_share_it(server):
    """Twice subscribed on two connections, every request would be run twice."""
    backend = redis_backend(unix_socket=str(server.path))

    async with receiving(backend, "a", "a", "b", "a") as received:
        await connected(backend)
        backend.listen(["a", "b", "b"])
        assert await server.publish("a", b"x") == 1
        assert await server.publish("b", b"y") == 1
        await until(lambda: len(received) == 2)


@both_loops
async def test_no_request_is_lost_between_one_subscription_and_the_next(server, loop):
    """What the server has handed over arrives, also while other channels are still on their
    way: PUBLISH says how many have got it."""
    channels = [CONTROL, *(f"channel{number}" for number in range(200))]

    for _ in range(8):
        backend = redis_backend(unix_socket=str(server.path))
        async with flooded(server) as flood, receiving(backend, *channels) as received:
            await connected(backend)
            await until(lambda flood=flood: flood.handed_over)
            await flood.stop()
            await server.publish(CONTROL, b"last")
            await until(lambda received=received: received and received[-1].payload == b"last")

            assert len(received) == flood.handed_over + 1


class Flood(threading.Thread):
    """A client that does nothing but send requests, in parallel with the agent."""

    def __init__(self, server):
        super().__init__()
        self.handed_over = 0
        self._path = str(server.path)
        self._over = threading.Event()

    def run(self):
        with redis.Redis(unix_socket_path=self._path) as client:
            while not self._over.is_set():
                self.handed_over += client.publish(CONTROL, b"x")

    async def stop(self):
        self._over.set()
        await asyncio.to_thread(self.join)


@asynccontextmanager
async def flooded(server):
    flood = Flood(server)
    flood.start()
    try:
        yield flood
    finally:
        await flood.stop()


async def test_without_a_channel_it_listens_on_the_usual_one(server):
    """The agent's own tasks are reached without any task file."""
    backend = redis_backend(unix_socket=str(server.path))

    async with receiving(backend):
        await connected(backend)
        backend.listen([])
        await until(lambda: _has(server, "ngcp-task-agent-redis"))


async def test_its_own_control_channel_stays_whatever_the_tasks_name(server):
    """Given in the backend's file."""
    backend = redis_backend(unix_socket=str(server.path), control_channel="own")

    async with receiving(backend, "task"):
        await connected(backend)
        assert await server.subscribers("own") == 1
        assert await server.subscribers("task") == 1
        assert await server.subscribers("ngcp-task-agent-redis") == 0


async def _has(server, channel, count=1):
    return await server.subscribers(channel) == count


async def test_listen_changes_channels_without_a_new_connection(server):
    """A task file comes and goes; requests for the others are not lost meanwhile."""
    backend = redis_backend(unix_socket=str(server.path))

    async with receiving(backend, "old", "stays") as received:
        await connected(backend)
        before = (await server.subscriber())["id"]
        backend.listen(["stays", "new"])
        await until(lambda: _has(server, "new"))
        await until(lambda: _has(server, "old", 0))
        for channel in ("old", "stays", "new"):
            await server.publish(channel, channel.encode())
        await until(lambda: len(received) == 2)

        assert [delivery.control_channel for delivery in received] == ["stays", "new"]
        assert (await server.subscriber())["id"] == before


async def test_many_changes_in_a_row_end_with_the_last(server):
    """An editor that saves three times."""
    backend = redis_backend(unix_socket=str(server.path))

    async with receiving(backend, "a"):
        await connected(backend)
        for channels in (["a", "b"], ["b"], ["a"], ["a", "b", "c"], ["c", "d"]):
            backend.listen(channels)
        await until(lambda: _has(server, "d"))

        assert [await server.subscribers(channel) for channel in "abcd"] == [0, 0, 1, 1]


async def test_changed_channels_are_those_of_the_next_connection(server):
    """What was listened on at the start is no longer the truth."""
    backend = redis_backend(unix_socket=str(server.path))

    async with receiving(backend, "old"):
        await connected(backend)
        backend.listen(["new"])
        await until(lambda: _has(server, "new"))
        await server.kill_subscriber()

        assert await server.subscribers("new") == 1
        assert await server.subscribers("old") == 0


async def test_every_connection_has_the_client_name(server):
    """An operator finds the agent in CLIENT LIST."""
    backend = redis_backend(unix_socket=str(server.path))

    async with receiving(backend):
        await connected(backend)
        backend.deliver("fb", b"x")
        await backend.flush("fb")

        assert len(await server.clients()) == 2
        assert len(await server.clients("")) == 0


async def test_the_client_name_may_be_given(server):
    """Several agents on one host."""
    backend = redis_backend(unix_socket=str(server.path), client_name="second")

    async with receiving(backend):
        await connected(backend)

        assert len(await server.clients("second")) == 1


@pytest.mark.parametrize("way", ["db", "unix url", "redis url", "url query"])
async def test_a_db_beyond_the_server_s_is_no_reason_to_fail(make_server, way):
    """Shipped configurations say 40, a server has 16, and pub/sub has none."""
    server = make_server()
    server.start(tcp=True)
    fields = {
        "db": {"unix_socket": str(server.path), "db": 40},
        "unix url": {"url": f"unix://{server.path}?db=40"},
        "redis url": {"url": f"redis://127.0.0.1:{server.port}/40"},
        "url query": {"url": f"redis://127.0.0.1:{server.port}?db=40"},
    }[way]
    backend = redis_backend(**fields)

    async with receiving(backend) as received:
        await connected(backend)
        await server.publish(CONTROL, b"x")
        await until(lambda: received)
        assert (await server.subscriber())["db"] == "0"


async def test_the_oldest_responses_are_dropped_and_counted(make_server):
    """Their clients have waited longest."""
    server = make_server()
    backend = redis_backend(unix_socket=str(server.path), response_queue=10)

    async with receiving(backend):
        for payload in numbered(25):
            backend.deliver("fb", payload)
        assert backend.state().dropped == 15

        server.start(hidden=True)
        async with server.listener("fb") as heard:
            server.show()
            await until(lambda: len(heard) == 10, 10)

        assert heard == numbered(10, start=16)
        assert backend.state().dropped == 15


async def test_the_queue_is_bounded_in_bytes_too(make_server):
    """Ten thousand responses of 4 MiB would not be nothing."""
    server = make_server()
    backend = redis_backend(unix_socket=str(server.path), response_queue_size="1MiB")

    async with receiving(backend):
        for number in range(8):
            backend.deliver("fb", str(number).encode() * 300_000)
        assert backend.state().dropped == 5

        server.start(hidden=True)
        async with server.listener("fb") as heard:
            server.show()
            await until(lambda: len(heard) == 3, 10)

        assert [payload[:1] for payload in heard] == [b"5", b"6", b"7"]


async def test_the_bound_holds_while_it_is_trying(make_server):
    """Responses keep coming during minutes without a server; the newest are kept."""
    server = make_server()
    backend = redis_backend(unix_socket=str(server.path), response_queue=10)

    async with receiving(backend):
        for payload in numbered(60):
            backend.deliver("fb", payload)
            await asyncio.sleep(0.01)  # attempts to send come between

        server.start(hidden=True)
        async with server.listener("fb") as heard:
            server.show()
            await until(lambda: heard and heard[-1] == b"60", 10)

    # Those of the attempt that is just being made are beside the queue.
    assert 10 <= len(heard) <= 20
    assert heard == numbered(len(heard), start=61 - len(heard))
    assert backend.state().dropped == 60 - len(heard)


async def test_what_the_server_refuses_is_dropped_and_counted(server, caplog):
    """An ACL that knows other channels only: one client's mistake, nobody else's loss."""
    await server.call(
        "ACL", "SETUSER", "agent", "on", ">secret", "resetchannels", f"&{CONTROL}", "&fb", "+@all"
    )
    backend = redis_backend(unix_socket=str(server.path), username="agent", password="secret")

    async with receiving(backend), server.listener("fb") as heard:
        await connected(backend)
        for number in numbered(6):
            backend.deliver("fb", number)
            backend.deliver("forbidden", number)
        await backend.flush("fb")
        await until(lambda: len(heard) == 6)

        assert heard == numbered(6)
        assert backend.state().dropped == 6
        assert backend.state().connected
    assert "forbidden" in caplog.text


async def test_close_does_not_wait_long_for_a_server_that_is_away(server):
    """What cannot be sent is told, and the agent ends."""
    backend = redis_backend(unix_socket=str(server.path))
    async with receiving(backend):
        await connected(backend)
        server.stop()
        backend.deliver("fb", b"x")
        began = asyncio.get_running_loop().time()

    assert asyncio.get_running_loop().time() - began < 6.0


async def test_nothing_is_left_open(server):
    """Neither a descriptor nor a task, nor a connection at the server."""
    before = open_files()
    for _ in range(3):
        backend = redis_backend(unix_socket=str(server.path))
        async with receiving(backend):
            await connected(backend)
            backend.deliver("fb", b"x")
            await backend.flush("fb")

    async def alone():
        return await server.clients() == []

    await until(alone)
    assert open_files() == before
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_the_agent_starts_without_a_server(place):
    """Nothing fails, and trying is as sound as being connected."""
    backend = redis_backend(unix_socket=str(place / "redis.sock"))

    async with receiving(backend):
        await until(lambda: backend.state().sound)

        assert not backend.state().connected
        assert backend.state().dropped == 0
