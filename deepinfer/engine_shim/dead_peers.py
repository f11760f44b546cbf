"""A peer that vanished without a word, as when its machine is gone, is noticed by the kernel, at no cost."""

from __future__ import annotations

import asyncio
import socket
from typing import Final

IDLE_SECONDS: Final = 10
SILENT_SECONDS: Final = 10
"""Of what was sent and never acknowledged, be it a call or a probe."""

_OPTIONS: Final = {  # not every system has all of them
    "TCP_KEEPIDLE": IDLE_SECONDS,
    "TCP_KEEPINTVL": 5,
    "TCP_KEEPCNT": 2,
    "TCP_USER_TIMEOUT": SILENT_SECONDS * 1000,
}


def notice_dead_peer(transport: asyncio.BaseTransport) -> None:
    """From now on the transport's connection is lost when its peer is."""
    connection = transport.get_extra_info("socket")
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _OPTIONS.items():
        if hasattr(socket, name):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
