"""
The way back to a client: where its answers go, and the claim on its request.
"""

from __future__ import annotations

from typing import NamedTuple

from .errors import MessageError
from .feedback import is_feedback_key
from .interfaces import Backend, Claim, Delivery
from .messages import Request, Response, encode_response


class Route(NamedTuple):
    """Where the answers to one request go.

    Attributes:
        backend: What carries them.
        name: What task files call it.
        address: Who hears them now; may be empty if there is a stream.
        stream: Where they are kept as well; empty for nowhere.
        claim: What holds the request, if it is durable.
        connection: Whether the address is a connection, which ends with the agent.
    """

    backend: Backend
    name: str
    address: str
    stream: str = ""
    claim: Claim | None = None
    connection: bool = False

    @classmethod
    def of(cls, request: Request, delivery: Delivery, backend: Backend, name: str) -> Route:
        """The way back for *request*.

        Raises:
            MessageError: The request does not say where its answers go.
        """
        address = delivery.address or request.feedback_channel
        stream = request.feedback_stream
        if stream and not is_feedback_key(stream):
            raise MessageError(f"options.feedback_stream: {stream!r:.80} is no client's key")
        if not address and not stream:
            raise MessageError(
                "options.feedback_channel: found nothing; expected a channel's name"
                " (or options.feedback_stream, a key)"
            )
        return cls(backend, name, address, stream, delivery.claim, bool(delivery.address))

    def send(self, response: Response) -> None:
        """Hand over a response; never waits."""
        self.post(encode_response(response))

    def post(self, payload: bytes) -> None:
        """Hand over a response that is already encoded; never waits."""
        self.backend.deliver(self.address, payload, self.stream)

    async def flush(self) -> None:
        """Wait until what was handed over has left; see `Backend.flush`."""
        await self.backend.flush(self.address)

    async def settle(self, payload: bytes, failure: str = "") -> bool:
        """Hand over the last response; False if the request is no longer ours.

        Args:
            failure: Why it has failed for good, if so.
        """
        if self.claim is None:
            self.post(payload)
            return True
        return await self.claim.settle(self.address, payload, self.stream, failure)

    def same_place(self, other: Route) -> bool:
        """Whether answers that go one way need not go the other as well."""
        return (self.backend, self.address, self.stream) == (
            other.backend, other.address, other.stream,
        )  # fmt: skip
