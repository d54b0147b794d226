"""
What one job has to say: its answer, what it says meanwhile, and how its process ended.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from contextlib import suppress
from typing import Any

from .errors import MessageError
from .live import Live
from .masking import Mask, MaskedStream, mask_of, secrets_in
from .spool import Spool

STDERR_KEPT = 64 * 1024  # bytes of stderr, its end, for `options.result`


class Collector:
    """The `Output` of one job.

    Args:
        spool_dir: See `Spool`.
        live: Where a client reads along; None if it does not.
        mask: Names of variables that must not get out.
        secrets: Texts that must not.

    Attributes:
        followed: Whether a client reads along.
        masks: Whether there is anything to hide.
        closed: Whether the answer stands: what is said later is ignored.
        text: The answer as text.
        has_result: Whether the broker gave a value instead of text.
        value: That value.
        stderr: The end of what was said beside the answer.
        truncated: Whether text or stderr are not all of it.
        user: Who does the work; empty if nobody has said.
        pid: In which process; None if in none of its own.
        code: Its exit code, minus the signal that ended it, or None.
        cpu_seconds: Processor time used, once it has ended; None if unknown.
        peak_memory: The most resident bytes, once it has ended; None if unknown.
    """

    def __init__(
        self,
        spool_dir: str = "",
        live: Live | None = None,
        mask: Collection[str] = (),
        secrets: Collection[str] = (),
    ) -> None:
        self.text = Spool(spool_dir)
        self.has_result = False
        self.value: Any = None
        self.stderr = b""
        self.truncated = False
        self.user = ""
        self.pid: int | None = None
        self.code: int | None = None
        self.cpu_seconds: float | None = None
        self.peak_memory: int | None = None
        self.closed = False
        self.followed = live is not None
        self.masks = bool(mask)
        self._live = live
        self._names = mask
        self._secrets = set(secrets)
        self._lasting = not secrets  # whether they are the task's own, not the request's
        self._made: Mask | None = None
        self._masked: dict[str, MaskedStream] = {}

    async def write(self, piece: bytes) -> None:
        """Add to the answer.

        Raises:
            BrokerError: The disk is full.
        """
        if self.closed:
            return
        piece = self._hidden("stdout", piece)
        await self.text.write(piece)
        await self._show("stdout", piece)

    async def write_error(self, piece: bytes) -> None:
        """Add to what is said beside it."""
        if self.closed:
            return
        piece = self._hidden("stderr", piece)
        self._keep(piece)
        await self._show("stderr", piece)

    async def progress(self, piece: bytes) -> None:
        """For a client that reads along only."""
        if self.closed:
            return
        await self._show("stdout", self._hidden("progress", piece))

    def cut(self, size: int) -> None:
        """Keep the first *size* bytes of the text only."""
        self.text.cut(size)
        self.truncated = True

    def result(self, value: Any) -> None:
        """Set the answer to *value* instead of the text."""
        if self.closed:
            return
        if self._secrets:
            with suppress(MessageError):  # told when it is sent
                value = self._mask.value(value)
        self.has_result = True
        self.value = value

    def runs_as(self, user: str, pid: int | None = None) -> None:
        """See `interfaces.Output`."""
        self.user, self.pid = user, pid

    def exited(
        self,
        code: int | None,
        *,
        cpu_seconds: float | None = None,
        peak_memory: int | None = None,
    ) -> None:
        """See `interfaces.Output`."""
        self.code, self.cpu_seconds, self.peak_memory = code, cpu_seconds, peak_memory

    def hide(self, variables: Mapping[str, Any]) -> None:
        """Never let out again what the task's `mask` names of these."""
        if not self._names:
            return
        self._secrets |= secrets_in(self._names, variables)
        self._made = None
        self._masked = {}

    def masked(self, text: str) -> str:
        """*text* without what is to be hidden."""
        return self._mask.text(text)

    async def finish(self) -> None:
        """Nothing more comes: let out what waited for its next piece."""
        self.closed = True
        rest = {name: stream.rest() for name, stream in self._masked.items()}
        if rest:
            await self.text.write(rest.get("stdout", b""))
            self._keep(rest.get("stderr", b""))
            rest["stdout"] = rest.get("stdout", b"") + rest.pop("progress", b"")
        if self._live is not None:
            await self._live.finish(rest)

    def discard(self) -> None:
        """Give back memory and disk."""
        self.closed = True
        self.text.discard()
        self.value = None
        self.stderr = b""

    @property
    def taken(self) -> int:
        """Bytes of text ever written; what was cut or discarded since is among them."""
        return self.text.taken

    @property
    def _mask(self) -> Mask:
        # Not made before something is said: that may take milliseconds, and jobs that
        # wait have been accepted at once.
        if self._made is None:
            secrets = frozenset(self._secrets)
            self._made = mask_of(secrets) if self._lasting else Mask(secrets)
        return self._made

    def _hidden(self, name: str, piece: bytes) -> bytes:
        if not self._secrets:
            return piece
        if name not in self._masked:
            self._masked[name] = MaskedStream(self._mask)
        return self._masked[name].feed(piece)

    def _keep(self, piece: bytes) -> None:
        self.truncated = self.truncated or len(self.stderr) + len(piece) > STDERR_KEPT
        self.stderr = (self.stderr + piece)[-STDERR_KEPT:]

    async def _show(self, stream: str, piece: bytes) -> None:
        if self._live is not None and piece:
            await self._live.write(stream, piece)
