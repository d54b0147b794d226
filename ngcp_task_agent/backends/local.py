"""
Requests and responses by a UNIX socket: one JSON message a line.

Needs no server: the way in for the administrator when Redis is away. Access is by
the socket's file mode and by the peer's credentials. Answers go to the connection
that asked, whatever `feedback_channel` it named.
"""

from __future__ import annotations

import asyncio
import fcntl
import grp
import itertools
import logging
import os
import pwd
import select
import socket
import stat
import struct
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import suppress

from ..errors import BackendError
from ..interfaces import BackendState, Delivery, Host
from ..options import Options

LONGEST_LINE = 64 * 1024 * 1024  # bytes; what is too long for a request is told by its decoder
UNREAD = 32 * 1024 * 1024  # bytes a client may leave unread before it is cut off
CLOSE_TIMEOUT = 1.0  # seconds for clients to read their last answers
WAITING = 1000  # requests read and not yet looked at
LINGER = 3600.0  # seconds a client that has closed its sending side may wait for answers
_PEERGROUPS = 59  # SO_PEERGROUPS, Linux 4.13

log = logging.getLogger(__name__)


class LocalBackend:
    """Options, all optional:

    - ``path``: of the socket; default ``local_socket`` of agent.yml
    - ``mode``: file mode in octal digits, default ``"0600"``
    - ``group``: group of the socket; its members may connect (mode ``"0660"``)
    - ``users``: login names that may connect, beside root and the daemon's user
    """

    shared = False
    forgets = True

    def __init__(self, options: Options) -> None:
        self._path = options.text("path")
        self._mode = options.octal("mode", 0o600)
        self._group = _ids(options, "group", grp.getgrnam)
        self._users = _ids(options, "users", pwd.getpwnam)
        self._inbox: asyncio.Queue[Delivery | None] = asyncio.Queue(WAITING)
        self._clients: dict[str, asyncio.StreamWriter] = {}
        self._numbers = itertools.count(1)
        self._server: asyncio.Server | None = None
        self._lock = -1
        self._closed = False
        self._dropped = 0
        self.on_change: Callable[[], None] = lambda: None
        self.host: Host | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    def subscription(self, options: Options) -> str:
        # A task that moves here from Redis may keep its channel; there is one way in.
        options.mark("control_channel")
        return ""

    def listen(self, channels: Iterable[str]) -> None:
        """There is one way in only."""

    async def open(self) -> None:
        """Make the socket.

        Raises:
            BackendError: Another daemon has it, or it cannot be made.
        """
        try:
            os.makedirs(os.path.dirname(self._path), mode=0o755, exist_ok=True)
            self._claim()
            before = os.umask(0o777)  # nobody gets in before the mode is right
            try:
                self._server = await asyncio.start_unix_server(
                    self._serve, self._path, limit=LONGEST_LINE
                )
            finally:
                os.umask(before)
            if self._group:
                os.chown(self._path, -1, min(self._group))
            os.chmod(self._path, self._mode or 0o600)
        except OSError as exc:
            self._release()
            raise BackendError(f"{self._path}: {exc.strerror or exc}") from exc

    def _release(self) -> None:
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    async def receive(self) -> AsyncIterator[Delivery]:
        while (delivery := await self._inbox.get()) is not None:
            yield delivery

    def deliver(self, address: str, payload: bytes, stream: str = "") -> None:
        writer = self._clients.get(address)
        if writer is None or writer.is_closing():
            self._dropped += 1
            return
        writer.write(payload + b"\n")
        if writer.transport.get_write_buffer_size() > UNREAD:
            log.warning("local client %s does not read its answers; cut off", address)
            writer.transport.abort()

    async def flush(self, address: str) -> None:
        writer = self._clients.get(address)
        if writer is not None:
            with suppress(OSError):
                await writer.drain()

    async def now(self) -> float:
        return time.time()

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
            with suppress(OSError):
                os.unlink(self._path)
        self._release()
        await self._inbox.put(None)

    async def close(self) -> None:
        self._closed = True
        writers = list(self._clients.values())
        for writer in writers:
            writer.close()  # what is written already still leaves
        closing = [asyncio.ensure_future(_closed(writer)) for writer in writers]
        if closing:
            await asyncio.wait(closing, timeout=CLOSE_TIMEOUT)
        for task in list(self._tasks):
            task.cancel()

    def state(self) -> BackendState:
        up = self._server is not None
        return BackendState(up, True, f"local {self._path}", self._dropped)

    def _claim(self) -> None:
        """Take the path from a daemon that has died, never from one that lives."""
        self._lock = os.open(self._path + ".lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._release()
            raise BackendError(f"{self._path}: in use by another agent") from None
        with suppress(FileNotFoundError):
            if not stat.S_ISSOCK(os.lstat(self._path).st_mode):
                self._release()
                raise BackendError(f"{self._path}: there is a file that is no socket")
            os.unlink(self._path)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        sock = writer.get_extra_info("socket")
        address = f"local-{next(self._numbers)}"
        try:
            if self._closed or not self._may_connect(sock):
                return
            self._clients[address] = writer
            pid, uid, _ = _peer(sock)
            caller = f"uid {uid}, pid {pid}"
            while line := await reader.readline():
                if line.strip():
                    payload = line.rstrip(b"\r\n")
                    await self._inbox.put(Delivery(payload, "", True, address, caller=caller))
            await _gone(sock)
        except ValueError:
            log.warning("local client %s: a line of more than %d bytes", address, LONGEST_LINE)
        except (OSError, asyncio.CancelledError):
            pass  # the client or the daemon goes; nobody waits for this task's end
        finally:
            self._tasks.discard(task)
            self._clients.pop(address, None)
            writer.close()

    def _may_connect(self, sock: socket.socket) -> bool:
        pid, uid, gid = _peer(sock)
        if uid in (0, os.geteuid()) or uid in self._users:
            return True
        groups = {gid, *_groups(sock)}
        if groups & self._group:
            return True
        log.warning("local client refused: user %d, process %d", uid, pid)
        return False


def _peer(sock: socket.socket) -> tuple[int, int, int]:
    """The process, user and group of who has connected."""
    found = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return found[0], found[1], found[2]


async def _closed(writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        await writer.wait_closed()


async def _gone(sock: socket.socket) -> None:
    """Wait until a client that sends no more has closed its other side as well."""
    if sock.fileno() < 0:  # closed by the daemon itself
        return
    poll = select.poll()
    poll.register(sock.fileno(), 0)  # POLLHUP is always told
    waited = 0.0
    while waited < LINGER and not poll.poll(0):
        await asyncio.sleep(0.2)
        waited += 0.2


def _groups(sock: socket.socket) -> tuple[int, ...]:
    try:
        packed = sock.getsockopt(
            socket.SOL_SOCKET, _PEERGROUPS, 1024
        )  # the most Python takes: 256 groups
    except OSError:
        return ()
    return struct.unpack(f"{len(packed) // 4}I", packed)


def _ids(options: Options, key: str, look_up: object) -> frozenset[int]:
    found = set()
    for name in options.names(key):
        try:
            found.add(look_up(name)[2])  # type: ignore[operator]
        except KeyError:
            options.problem(key, repr(name), "a name this host knows")
    return frozenset(found)
