"""A peer that vanished without a word, as when its machine is gone, is noticed by the kernel, at no cost."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Mapping
from typing import Final

IDLE_SECONDS: Final = 5
SILENT_SECONDS: Final = 10
"""Of what was sent and never acknowledged, be it a call or a probe. A reader that only waits asks after `IDLE_SECONDS`
and again 5 s later; by then it has heard nothing for so long."""

_OPTIONS: Final = {
    "TCP_KEEPIDLE": IDLE_SECONDS,
    "TCP_KEEPINTVL": 5,
    "TCP_KEEPCNT": 2,
    "TCP_USER_TIMEOUT": SILENT_SECONDS * 1000,
}


def notice_dead_peer(transport: asyncio.BaseTransport) -> None:
    """From now on the transport's connection is lost when its peer is."""
    ask_peer(transport, _OPTIONS)


def ask_peer(transport: asyncio.BaseTransport, options: Mapping[str, int]) -> None:
    """Let the kernel ask an idle connection's peer whether it is there. Not every system has all of its options."""
    connection = transport.get_extra_info("socket")
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in options.items():
        if hasattr(socket, name):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
