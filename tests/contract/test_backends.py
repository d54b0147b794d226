"""What every backend must do; add yours to `WORLDS` and it is held to it."""

import asyncio
import os
import socket
import time
import uuid
from concurrent.futures import ThreadPoolExecutor

import pytest
import redis.asyncio

from ngcp_task_agent import registry
from ngcp_task_agent.backends.local import LocalBackend
from ngcp_task_agent.backends.redis import RedisBackend
from ngcp_task_agent.backends.redis_stream import RedisStreamBackend
from ngcp_task_agent.destination import Node
from ngcp_task_agent.errors import BackendError
from ngcp_task_agent.interfaces import Reaching
from ngcp_task_agent.options import Options

from ..helpers import MemoryBackend, until

MANY = 300
LARGE = b'"' + b"x" * 1_000_000 + b'"'
ODD = [b"{}", b'{"a": "sm\xc3\xb6r"}', b"\xff\xfe", b"a\0b", b"x" * 100_000]


class World:
    """One backend at work, and one client that asks and listens.

    Attributes:
        address: Where the client's answers go.
        channels: Whether requests come in by named channels.
        key: What a task calls its channel in `backend_options`.
        heard: What the client has received, in order.
    """

    kind = ""
    address = "fb"
    channels = True
    key = "control_channel"

    def __init__(self, place):
        self.place = place
        self.channel = f"control-{uuid.uuid4()}"
        self.deliveries = []
        self.heard = []
        self.tasks = []
        self.backend = self.build()

    async def __aenter__(self):
        self.backend.listen({self.channel})
        await self.backend.open()
        self.receiving = self.spawn(self.receive())
        await until(lambda: self.backend.state().connected)
        await self.connect()
        return self

    async def __aexit__(self, *_):
        await self.backend.stop()
        await self.backend.close()
        await self.disconnect()
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        await asyncio.sleep(0.01)  # a transport that was told to close takes some turns of the loop

    def spawn(self, work):
        task = asyncio.ensure_future(work)
        self.tasks.append(task)
        return task

    async def receive(self):
        async for delivery in self.backend.receive():
            self.deliveries.append(delivery)

    @property
    def received(self):
        return [delivery.payload for delivery in self.deliveries]

    def build(self):
        """A backend, not yet opened."""
        raise NotImplementedError

    async def connect(self):
        """Let the client listen."""

    async def send(self, payload, channel=""):
        """Let the client ask."""
        raise NotImplementedError

    async def disconnect(self):
        """Let the client go."""


class MemoryWorld(World):
    kind = "memory"

    def build(self):
        backend = MemoryBackend()
        self.heard = backend.sent.setdefault(self.address, [])
        return backend

    async def send(self, payload, channel=""):
        self.backend.publish(payload, channel or self.channel)


class LocalWorld(World):
    kind = "local"
    channels = False
    writer = None

    def build(self):
        path = os.path.join(self.place, "run", "agent.sock")
        return LocalBackend(Options({"path": path}, "backends/local.yml"))

    async def connect(self):
        self.reader, self.writer = await asyncio.open_unix_connection(
            os.path.join(self.place, "run", "agent.sock"), limit=1 << 26
        )
        await self.send(b"hello")  # the backend has an address for us once we have asked
        await until(lambda: self.deliveries)
        self.address = self.deliveries.pop().address
        self.spawn(self.listen())

    async def listen(self):
        while line := await self.reader.readline():
            self.heard.append(line.removesuffix(b"\n"))

    async def send(self, payload, channel=""):
        self.writer.write(payload + b"\n")
        await self.writer.drain()

    async def disconnect(self):
        if self.writer is not None:
            self.writer.close()
            await asyncio.gather(self.writer.wait_closed(), return_exceptions=True)


class RedisWorld(World):
    kind = "redis"
    client = None

    def build(self):
        return RedisBackend(Options({"unix_socket": self.place}, "backends/redis.yml"))

    async def connect(self):
        self.address = f"feedback-{uuid.uuid4()}"
        self.client = redis.asyncio.Redis(unix_socket_path=self.place)
        self.pubsub = self.client.pubsub(ignore_subscribe_messages=True)
        await self.pubsub.subscribe(self.address)
        await self.pubsub.parse_response()
        self.spawn(self.listen())

    async def listen(self):
        async for message in self.pubsub.listen():
            self.heard.append(message["data"])

    async def send(self, payload, channel=""):
        await self.client.publish(channel or self.channel, payload)

    async def disconnect(self):
        if self.client is not None:
            for task in self.tasks:
                task.cancel()
            await asyncio.gather(*self.tasks, return_exceptions=True)
            await self.pubsub.aclose()
            await self.client.aclose()


class RedisStreamWorld(RedisWorld):
    kind = "redis_stream"
    key = "control_stream"

    def build(self):
        backend = RedisStreamBackend(Options({"unix_socket": self.place}, "backends/b.yml"))
        backend.host = RoomyHost()
        return backend

    async def send(self, payload, channel=""):
        await self.client.xadd(channel or self.channel, {"request": payload})


class RoomyHost:
    """A host that could start whatever comes."""

    identity = "m1"

    def node(self):
        return Node("db01")

    def room(self, control_channel):
        return 1_000_000


WORLDS = [
    MemoryWorld,
    LocalWorld,
    pytest.param(RedisWorld, marks=pytest.mark.redis),
    pytest.param(RedisStreamWorld, marks=pytest.mark.redis),
]


@pytest.fixture(params=WORLDS, ids=lambda world: world.kind)
def world(request, tmp_path):
    """A function that makes a world; each is one backend and its client."""
    return maker(request, tmp_path)


@pytest.fixture(params=[WORLDS[0], *WORLDS[2:]], ids=lambda world: world.kind)
def channels(request, tmp_path):
    """The same, for backends where requests come in by named channels."""
    return maker(request, tmp_path)


@pytest.fixture(params=WORLDS[2:], ids=lambda world: world.kind)
def asked(request, tmp_path):
    """The same, for backends whose other side can be asked; add yours if it has `reach`."""
    return maker(request, tmp_path)


def maker(request, tmp_path):
    redis_server = issubclass(request.param, RedisWorld)
    place = request.getfixturevalue("redis_socket") if redis_server else str(tmp_path)
    return lambda: request.param(place)


def test_each_of_our_own_is_held_to_this():
    """A backend in the table of the registry has a world here."""
    kinds = {getattr(world, "values", [world])[0].kind for world in WORLDS}

    assert set(registry.BUILTIN["backends"]) <= kinds


# In


async def test_requests_arrive_in_the_order_they_were_sent(world):
    """A client's second request may rely on its first."""
    sent = [b'{"n": %d}' % number for number in range(MANY)]
    async with world() as one:
        for payload in sent:
            await one.send(payload)

        await until(lambda: len(one.received) == MANY)
        assert one.received == sent


@pytest.mark.parametrize("payload", ODD, ids=["json", "utf-8", "no text", "nul", "long"])
async def test_a_request_arrives_as_it_was_sent(world, payload):
    """Bytes are bytes: what they mean is another room's business."""
    async with world() as one:
        await one.send(payload)
        await one.send(b"next")

        await until(lambda: len(one.received) == 2)
        assert one.received == [payload, b"next"]


async def test_a_delivery_names_its_channel(world):
    """A task is reached on its own channel only."""
    async with world() as one:
        await one.send(b"{}")

        await until(lambda: one.deliveries)
        assert one.deliveries[0].control_channel == (one.channel if one.channels else "")


async def test_only_what_is_listened_to_arrives(channels):
    """And the channels may change while it runs."""
    async with channels() as one:
        other = f"{one.channel}-other"

        await one.send(b"unheard", other)
        one.backend.listen({one.channel, other})
        await until_heard(one, other)
        one.deliveries.clear()
        one.backend.listen({other})
        await one.send(b"kept", other)
        await until(lambda: b"kept" in one.received)

        assert b"unheard" not in one.received


async def until_heard(world, channel):
    """Send until it arrives: a subscription takes a moment."""
    while not any(delivery.control_channel == channel for delivery in world.deliveries):
        await world.send(b"are you there?", channel)
        await asyncio.sleep(0.01)


async def test_a_channel_given_up_is_not_heard_any_more(channels):
    """The task is gone; its requests are other people's."""
    async with channels() as one:
        other = f"{one.channel}-other"
        one.backend.listen({other})
        await until_heard(one, other)

        await one.send(b"too late")
        await one.send(b"fence", other)

        await until(lambda: b"fence" in one.received)
        assert b"too late" not in one.received


async def test_asking_whether_it_is_reached_disturbs_nothing(asked):
    """Monitoring asks at any time, and many may ask at once."""
    async with asked() as one:
        assert isinstance(one.backend, Reaching)
        await reached(one.backend)
        sent = [b'{"n": %d}' % number for number in range(MANY)]

        asking = [one.spawn(one.backend.reach()) for _ in range(20)]
        for payload in sent:
            await one.send(payload)
        await asyncio.gather(*asking)

        await until(lambda: len(one.received) == MANY)
        assert one.received == sent


async def test_it_is_reached_again_when_its_channels_have_changed(asked):
    """A reload, and what is not listened to any more is not missed."""
    async with asked() as one:
        await reached(one.backend)
        other = f"{one.channel}-other"

        one.backend.listen({other})

        await reached(one.backend)
        await one.send(b"kept", other)
        await until(lambda: b"kept" in one.received)


async def test_who_gives_up_asking_leaves_the_backend_whole(asked):
    """A question has a time limit, and the next one is answered."""
    async with asked() as one:
        for _ in range(20):
            asking = asyncio.ensure_future(one.backend.reach())
            await asyncio.sleep(0)
            asking.cancel()
        await reached(one.backend)

        await one.send(b"{}")
        await until(lambda: one.received == [b"{}"])


async def test_a_backend_that_has_stopped_is_not_reached(asked):
    """It says so, one way or the other."""
    async with asked() as one:
        await reached(one.backend)
        await one.backend.stop()
        await one.backend.close()

        with pytest.raises(BackendError):
            await one.backend.reach()


async def reached(backend):
    """Wait until the backend says that it is; a subscription takes a moment."""
    async with asyncio.timeout(5):
        while True:
            try:
                return await backend.reach()
            except BackendError:
                await asyncio.sleep(0.005)


# Out


async def test_responses_leave_in_the_order_they_were_delivered(world):
    """`accepted` before `done`, chunk before chunk; large ones do not fall behind."""
    responses = [b'{"n": %d}' % number for number in range(MANY)]
    responses[MANY // 2] = LARGE
    async with world() as one:
        for payload in responses:
            one.backend.deliver(one.address, payload)

        await until(lambda: len(one.heard) == MANY)
        assert one.heard == responses


async def test_deliver_never_waits(world):
    """It is no coroutine, and a thousand responses need no turn of the loop."""
    async with world() as one:
        turns = []
        asyncio.get_running_loop().call_soon(turns.append, 1)

        for _ in range(1000):
            assert one.backend.deliver(one.address, b"{}") is None

        assert turns == []
        await until(lambda: len(one.heard) == 1000)


async def test_after_flush_it_has_left(world):
    """A sender of many pieces paces itself by it."""
    async with world() as one:
        for _ in range(4):
            one.backend.deliver(one.address, LARGE)
            await asyncio.wait_for(one.backend.flush(one.address), 5)

        await until(lambda: len(one.heard) == 4)
        assert one.backend.state().dropped == 0


async def test_who_has_gone_holds_nothing_up(world):
    """A client that gave up is nobody's problem: no exception, no waiting."""
    async with world() as one:
        one.backend.deliver("nobody-there", b"{}")
        await asyncio.wait_for(one.backend.flush("nobody-there"), 5)
        one.backend.deliver(one.address, b"{}")

        await until(lambda: one.heard == [b"{}"])


async def test_a_client_that_disconnects_is_nobodys_problem(world):
    """Whatever is still delivered to it."""
    async with world() as one:
        await one.disconnect()

        for _ in range(100):
            one.backend.deliver(one.address, LARGE)
            await asyncio.sleep(0)
        await asyncio.wait_for(one.backend.flush(one.address), 5)

        assert one.backend.state().sound


# The end


async def test_stop_ends_receive(world):
    """Stop taking comes first; the receiver returns instead of hanging."""
    async with world() as one:
        await one.backend.stop()

        await asyncio.wait_for(one.receiving, 5)


async def test_answers_may_be_delivered_after_stop(world):
    """Jobs that end during the grace time are answered."""
    async with world() as one:
        await one.backend.stop()

        one.backend.deliver(one.address, b'{"status": "done"}')

        await until(lambda: one.heard == [b'{"status": "done"}'])


async def test_close_sends_what_waits(world):
    """The last answers of a daemon that stops."""
    async with world() as one:
        await one.backend.stop()
        for number in range(MANY):
            one.backend.deliver(one.address, b"%d" % number + b"x" * 1000)
        await one.backend.close()

        await until(lambda: len(one.heard) == MANY)


async def test_close_may_be_called_again(world):
    """Who stops in a hurry need not remember what has been closed."""
    async with world() as one:
        for _ in range(2):
            await one.backend.stop()
            await asyncio.wait_for(one.backend.close(), 5)


async def test_close_without_open_is_fine(world):
    """A backend that was never to be had is closed like the others."""
    one = world()

    await asyncio.wait_for(one.backend.stop(), 5)
    await asyncio.wait_for(one.backend.close(), 5)
    await one.backend.close()


async def test_what_has_been_closed_makes_room(world):
    """A daemon that is restarted finds its place free."""
    async with world():
        pass

    async with world() as again:
        await again.send(b"{}")
        await until(lambda: again.received == [b"{}"])


async def test_state_is_for_people_and_the_watchdog(world):
    """Connected and sound while it works, and one line of text."""
    async with world() as one:
        state = one.backend.state()

    assert (state.connected, state.sound, state.dropped) == (True, True, 0)
    assert state.text.strip()
    assert "\n" not in state.text


def test_a_subscription_is_read_from_the_tasks_options(world):
    """Nothing that a task may write there is an unknown key, or breaks the file."""
    one = world()
    options = Options({one.key: "c"}, "tasks/ping.yml", "backend_options.")

    channel = one.backend.subscription(options)

    assert channel == ("c" if one.channels else "")
    assert (options.problems, options.unknown()) == ([], [])


# The local backend alone


async def test_a_socket_in_use_is_not_taken_away(tmp_path):
    """Two daemons on one path: the second goes on without."""
    async with LocalWorld(str(tmp_path)) as first:
        second = LocalWorld(str(tmp_path)).backend
        with pytest.raises(BackendError, match="in use by another agent"):
            await second.open()
        await second.close()

        await first.send(b"{}")
        await until(lambda: first.received == [b"{}"])


async def test_answers_go_to_the_connection_that_asked(tmp_path):
    """Several clients at once; nobody hears what is not meant for him."""
    async with LocalWorld(str(tmp_path)) as one:
        readers = [await asyncio.open_unix_connection(one.place + "/run/agent.sock") for _ in "ab"]
        for (_, writer), name in zip(readers, (b"a", b"b"), strict=True):
            writer.write(name + b"\n")
        await until(lambda: len(one.deliveries) == 2)

        for delivery in one.deliveries:
            one.backend.deliver(delivery.address, b"for " + delivery.payload)

        heard = [await reader.readline() for reader, _ in readers]
        assert heard == [b"for a\n", b"for b\n"]
        for _, writer in readers:
            writer.close()


@pytest.mark.parametrize("size", range(192, 320, 32))
async def test_close_waits_for_a_client_that_reads_late(tmp_path, size):
    """A last answer cut off in the middle of a line is no answer; nothing is sent after close."""
    backend = LocalWorld(str(tmp_path)).backend
    await backend.open()
    receiving = backend.receive()
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(tmp_path / "run" / "agent.sock"))
        client.settimeout(1)
        client.sendall(b"{}\n")
        address = (await anext(receiving)).address
        with ThreadPoolExecutor(1) as thread:
            heard = thread.submit(read_late, client, size << 10)
            await backend.stop()
            backend.deliver(address, b"x" * (size << 10))
            await backend.close()
            length = heard.result()  # the loop stands still, as after the daemon's end
    await asyncio.sleep(0.01)

    assert length == (size << 10) + 1


def read_late(client, size):
    time.sleep(0.05)
    length = 0
    try:
        while length <= size and (piece := client.recv(1 << 16)):
            length += len(piece)
    except TimeoutError:
        pass
    return length


@pytest.mark.parametrize(("mode", "bits"), [(None, 0o600), ("0660", 0o660)])
async def test_the_sockets_mode_is_the_files(tmp_path, mode, bits):
    """Access is by file mode; by default root alone."""
    path = str(tmp_path / "s")
    backend = LocalBackend(Options({"path": path, "mode": mode}, "backends/local.yml"))
    await backend.open()
    found = os.stat(path).st_mode & 0o777
    await backend.stop()
    await backend.close()

    assert found == bits


async def test_who_is_connected_when_it_closes_is_sent_away(tmp_path):
    """Else that client waits for an answer until it gives up."""
    async with LocalWorld(str(tmp_path)) as one:
        reader, writer = await asyncio.open_unix_connection(one.place + "/run/agent.sock")
        await asyncio.sleep(0.01)  # asyncio loses a connection accepted right before a stop

        await one.backend.stop()
        await one.backend.close()
        end = asyncio.ensure_future(reader.read())
        await asyncio.wait((end,), timeout=2)
        writer.close()

        assert end.done()
        assert await end == b""
