"""An HTTP server that keeps what it was sent, byte for byte, and says what it is told to."""

import asyncio
import contextlib
import ssl
from typing import NamedTuple

import pytest

from ngcp_task_agent.errors import BrokerError

from .jobs import Kept, job
from .waiting import until


class Received(NamedTuple):
    """One request as it came."""

    line: str
    headers: dict
    body: bytes

    @property
    def target(self):
        return self.line.split(" ")[1]


def answer(body="", status="200 OK", **headers):
    """The bytes of an answer; ``content_type`` names the header Content-Type."""
    body = body.encode() if isinstance(body, str) else body
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}"]
    lines += [f"{name.replace('_', '-').title()}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + body


class HttpServer:
    """Answers on loopback or on a UNIX socket.

    Args:
        says: Bytes, or an `async` function of the request and the writer.

    Attributes:
        requests: What came, in order.
        open: Connections that are open.
        url: Without a path.
    """

    def __init__(self, says, scheme="http"):
        self.says = says
        self.scheme = scheme
        self.requests = []
        self.open = 0
        self.seen = 0
        self.url = ""

    async def handle(self, reader, writer):
        self.open += 1
        self.seen += 1
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
            pairs = [line.split(": ", 1) for line in head[1:] if line]
            headers = {name.lower(): value for name, value in pairs}
            assert len(headers) == len(pairs), pairs
            assert "transfer-encoding" not in headers
            body = await reader.readexactly(int(headers.get("content-length", 0)))
            self.requests.append(Received(head[0], headers, body))
            if isinstance(self.says, bytes):
                writer.write(self.says)
            else:
                await self.says(self.requests[-1], writer)
            # The client has to close.
            await reader.read()
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            self.open -= 1
            writer.close()


@contextlib.asynccontextmanager
async def serving(says=b"", pair=None, path=None):
    """An `HttpServer` that is up.

    Args:
        says: See there.
        pair: Certificate and key, for TLS.
        path: Of a UNIX socket, for none on loopback.
    """
    server = HttpServer(says or answer("pong"), "https" if pair else "http")
    context = None
    if pair:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(pair.cert, pair.key)
    if path:
        listener = await asyncio.start_unix_server(lambda *ends: server.handle(*ends), path)
    else:
        listener = await asyncio.start_server(server.handle, "127.0.0.1", 0, ssl=context)
        server.url = f"{server.scheme}://127.0.0.1:{listener.sockets[0].getsockname()[1]}"
    try:
        yield server
        # Nobody else closes a connection: each that is left is a leak of the client's.
        await until(lambda: server.open == 0)
    finally:
        listener.close()


async def ask(broker, **fields):
    """The text of the answer to a job."""
    output = Kept()
    await broker.run(job(**fields), output)
    return output.text.decode()


async def refusal(broker, **fields):
    """The reason of a job that fails."""
    with pytest.raises(BrokerError) as caught:
        await ask(broker, **fields)
    return str(caught.value)
