"""What a request's headers say, kept for the next request of its connection: clients say the same again and again."""

from __future__ import annotations

from msgspec import Struct

from deepinfer.control_plane.access.key_ring import Digest
from deepinfer.control_plane.gateway.body import Sent


class KnownHead(Struct, frozen=True):
    """Of a request that may go past the application if its key may, and its body."""

    headers: list[tuple[bytes, bytes]]  # all but Content-Length
    key: Digest  # b"": none is required
    sent: Sent
    request_id: bytes  # the client's own, or b""
