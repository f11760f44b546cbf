"""A batch on its way to the next stage: one frame, whatever it holds."""

from __future__ import annotations

from torch import Tensor

from deepinfer.engine_shim.engines.layer_shard.pipeline.frames import Header, Kind
from deepinfer.engine_shim.engines.layer_shard.pipeline.link import Link
from deepinfer.engine_shim.engines.layer_shard.pipeline.messages import Passed, encoded


def send_rows(link: Link, epoch: int, passed: Passed, rows: Tensor) -> None:
    """`rows` [token, width] of the batch's spans, in the dtype they were computed in: rounding them would change the
    answer. Raises `OSError`."""
    message, step = encoded(passed), passed.batch.step
    if passed.batch.spans:
        count, width = rows.shape
        link.send(Header(Kind.ROWS, epoch, step, count, width, rows.dtype, len(message)), message, rows)
    else:
        link.send(Header(Kind.ROWS, epoch, step, message_bytes=len(message)), message)
