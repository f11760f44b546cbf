"""Whether a request's head is one that every server reads in the same way. Pure.

What the HTTP parser refuses by itself is not repeated here: broken lines and lengths, lengths given twice, a length
beside a transfer encoding, folded lines, control characters.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from deepinfer.control_plane.openai_errors import BodyTooLarge, EncodedBody, HeadTooLarge, NotHttp
from deepinfer.fleet.config import FrontLimits

MOST_HEADERS = 100
_HOST = re.compile(rb"(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?")
_LOOKED_AT = frozenset((b"host", b"transfer-encoding", b"content-encoding"))


def check_head(version: str, headers: Sequence[tuple[bytes, bytes]], limits: FrontLimits) -> None:
    """Raises what is to be told to the client. Header names are lower case; Content-Length is not among them."""
    if version not in ("1.1", "1.0"):
        raise NotHttp(f"HTTP/{version} is not spoken here; use HTTP/1.1.")
    if len(headers) > MOST_HEADERS:
        raise HeadTooLarge(f"The request has {len(headers)} headers; send at most {MOST_HEADERS}.")
    hosts = 0
    for name, value in headers:
        if name in _LOOKED_AT:
            if name == b"host":
                hosts += 1
                _check_host(value)
            elif name == b"transfer-encoding":
                _check_transfer(value, version)
            elif value.strip().lower() not in (b"", b"identity"):
                raise EncodedBody("A compressed body is not taken here; send it without Content-Encoding.")
    if hosts > 1 or (hosts == 0 and version == "1.1"):
        raise NotHttp(f"The request has {hosts} Host headers; send one.")


def check_head_size(url: bytes, headers: Sequence[tuple[bytes, bytes]], limits: FrontLimits) -> None:
    """Raises `HeadTooLarge`."""
    if len(url) + sum(len(name) + len(value) + 4 for name, value in headers) > limits.max_header_bytes:
        raise head_too_large(limits)


def head_too_large(limits: FrontLimits) -> HeadTooLarge:
    return HeadTooLarge(
        f"The request's line and headers are larger than {limits.max_header_bytes >> 10} KiB; send less."
    )


def too_large(limits: FrontLimits) -> BodyTooLarge:
    size = limits.max_body_bytes
    told = f"{size >> 20} MiB" if size >= 1 << 20 else f"{size} bytes"
    return BodyTooLarge(f"The body is larger than {told}; send less.")


def _check_host(value: bytes) -> None:
    if not _HOST.fullmatch(value):
        raise NotHttp("The Host header is no host; send a name or an address, with a port or none.")


def _check_transfer(value: bytes, version: str) -> None:
    """Also what HTTP allows: who is behind or before us may not know it, and then sees other requests than we do."""
    if value.lower() != b"chunked" or version == "1.0":
        raise NotHttp("The only transfer encoding that is understood here is 'chunked', with HTTP/1.1.")
