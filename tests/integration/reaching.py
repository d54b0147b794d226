"""Whether the Redis backend reaches a server, and what it says where it does not."""

from .alone import open_files
from .backends import CONTROL, connected, receiving, redis_backend
from .waiting import until

ATTEMPTS = 3  # until it is believed that something is reported once


async def works(server, **fields):
    """Whether requests arrive and responses leave with these options."""
    before = open_files()
    backend = redis_backend(**fields)
    async with receiving(backend) as received, server.listener("fb") as heard:
        await connected(backend)
        await server.publish(CONTROL, b"request")
        backend.deliver("fb", b"response")
        await until(lambda: received and heard)
    # With TLS, the two ends take leave of each other first.
    await until(lambda: open_files() == before, what="all connections closed")
    assert received[0].local
    return (received[0].payload, heard) == (b"request", [b"response"])


async def refused(**fields):
    """Let the agent try several times to reach a server that does not let it in."""
    before = open_files()
    backend = redis_backend(**fields)
    async with receiving(backend):
        await until(attempted(backend), 10, f"{ATTEMPTS} attempts")
        state = backend.state()
        assert (state.connected, state.sound) == (False, True)
    await until(lambda: open_files() == before, what="all connections closed")


def attempted(backend):
    """A condition: *backend* has tried to connect often enough.

    A server does not count handshakes that fail, and where there is none nobody counts.
    """
    times = set()

    def enough():
        times.add(backend._attempt)
        return len(times) > ATTEMPTS

    return enough


def warnings(caplog):
    """The lines an operator sees of it."""
    name = "ngcp_task_agent.backends.redis"
    return [record.getMessage() for record in caplog.records if record.name == name]
