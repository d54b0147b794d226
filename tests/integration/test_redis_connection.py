"""Connections that are reset by the other end, on either loop."""

import asyncio
import socket
import struct
import threading
from contextlib import contextmanager

import pytest
import redis.asyncio
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError

from ngcp_task_agent.backends.redis_server import RedisServer
from ngcp_task_agent.backends.redis_stream_calls import TROUBLES, Calls
from ngcp_task_agent.options import Options

from .loops import both_loops, run

BUFFER = 4096  # bytes
RESET = struct.pack("ii", 1, 0)  # SO_LINGER: what is closed is reset
NOTICED = 0.1  # seconds for a reset to arrive


@contextmanager
def resetting(word):
    """The port of a server that says OK to everything, and resets at *word*."""
    with socket.create_server(("127.0.0.1", 0)) as door:
        thread = threading.Thread(target=_serve, args=(door, word))
        thread.start()
        try:
            yield door.getsockname()[1]
        finally:
            door.shutdown(socket.SHUT_RDWR)
            thread.join(5)


def _serve(door, word):
    while True:
        try:
            connection, _ = door.accept()
        except OSError:
            return
        with connection:
            while word not in (heard := connection.recv(BUFFER)) and heard:
                connection.sendall(b"+OK\r\n" * heard.count(b"*"))
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)


@both_loops
def test_to_write_after_a_reset_is_a_lost_connection(loop):
    """uvloop raises `RuntimeError`, and whoever waits for another server would end."""

    async def check():
        with resetting(b"PING") as port:
            connection = await RedisServer(Options({"port": port}, "redis.yml")).connect()
            await connection.send_command("PING")
            await asyncio.sleep(NOTICED)
            with pytest.raises(RedisConnectionError):
                await connection.send_command("PING")

    run(check(), 10, loop)


class OfTheLibrary:
    """A server whose client makes its connections itself, as those of sentinels do."""

    def __init__(self, port):
        self.client = redis.asyncio.Redis(
            port=port, protocol=2, retry=Retry(NoBackoff(), 0), single_connection_client=True
        )

    def commands(self, _):
        return self.client


@both_loops
def test_commands_of_other_clients_fail_as_is_expected_of_them(loop):
    """What is to be tried until it works would be given up for the wrong kind of error."""

    async def check():
        with resetting(b"TIME") as port:
            server = OfTheLibrary(port)
            await server.client.initialize()
            await server.client.connection.send_command("TIME")
            await asyncio.sleep(NOTICED)
            calls = Calls(server)
            with pytest.raises(TROUBLES):
                await calls.time()
            await calls.close()

    run(check(), 10, loop)
