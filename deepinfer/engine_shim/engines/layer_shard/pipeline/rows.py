"""A batch on its way to the next stage: one frame, whatever it holds. On the way back come signs of life.

A cut between two stages only, that both can still speak to the head, is seen by nothing else: what was sent last lies
in this machine's memory, and nobody sends more before it has been answered.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Final

from torch import Tensor

from deepinfer.engine_shim.engines.layer_shard.pipeline.frames import FrameLimits, FrameRefused, Header, Kind
from deepinfer.engine_shim.engines.layer_shard.pipeline.handshake import Role, Secret
from deepinfer.engine_shim.engines.layer_shard.pipeline.link import Link, connected
from deepinfer.engine_shim.engines.layer_shard.pipeline.messages import Alive, Passed, Peer, encoded

SILENT_SECONDS: Final = 1.5  # six beats


def send_rows(link: Link, epoch: int, passed: Passed, rows: Tensor) -> None:
    """`rows` [token, width] of the batch's spans, in the dtype they were computed in: rounding them would change the
    answer. Raises `OSError`."""
    message, step = encoded(passed), passed.batch.step
    if passed.batch.spans:
        count, width = rows.shape
        link.send(Header(Kind.ROWS, epoch, step, count, width, rows.dtype, len(message)), message, rows)
    else:
        link.send(Header(Kind.ROWS, epoch, step, message_bytes=len(message)), message)


def rows_link(peer: Peer, secret: Secret, lost: Callable[[str], None]) -> Link:
    """A link for rows to this stage. `lost` is told, from another thread, why it is of no use any more, unless it was
    closed here. Raises `OSError`."""
    link = connected(peer.endpoint, secret, peer.name, Role.ROWS)
    link.patience(SILENT_SECONDS)
    threading.Thread(target=_watch, args=(link, lost), name=f"rows-to-{peer.name}", daemon=True).start()
    return link


def tell_alive(link: Link) -> None:
    """To the stage before. Raises `OSError`."""
    message = encoded(Alive())
    link.send(Header(Kind.REPORT, message_bytes=len(message)), message)


def _watch(link: Link, lost: Callable[[str], None]) -> None:
    limits = FrameLimits(Kind.REPORT)
    try:
        while True:
            link.receive(limits)
    except (OSError, FrameRefused) as error:
        if not link.closed:
            lost(str(error))
