"""What a stage handed on, in host memory, so that the stage behind it can be replaced: each sequence's rows by place.

A row is as long as the model is wide, far less than what a layer holds of a token times the layers of a stage. A
sequence that finds no room is not journaled any more; its tokens are then computed again from the beginning.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from deepinfer.engine_shim.engines.layer_shard.batch import Batch, Span


class Journal:
    """Of one stage. `most_bytes` bounds its memory."""

    def __init__(self, most_bytes: int) -> None:
        self.most_bytes = most_bytes
        self._rows: dict[int, Tensor] = {}
        self._held: dict[int, int] = {}  # tokens, from the first on

    @property
    def held(self) -> dict[int, int]:
        """How many tokens of which sequence, without a gap from the first on."""
        return dict(self._held)

    def note(self, batch: Batch, rows: Tensor) -> None:
        """The `rows` [token, width] that the stage made of the batch."""
        for number in batch.ended:
            self._forget(number)
        start = 0
        for span in batch.spans:
            self._keep(span, rows[start : start + span.count])
            start += span.count

    def rows_of(self, spans: Iterable[Span]) -> Tensor:
        """As they were handed on. Raises `KeyError` where they are not here."""
        return torch.cat([self._rows[span.sequence][span.start : span.start + span.count] for span in spans])

    def _keep(self, span: Span, rows: Tensor) -> None:
        if span.start > self._held.get(span.sequence, 0):
            return  # its beginning found no room
        memory = self._rows.get(span.sequence)
        if memory is None or len(memory) < span.start + span.count:
            memory = self._grown(span, rows, memory)
        if memory is None:
            self._forget(span.sequence)
            return
        memory[span.start : span.start + span.count] = rows
        self._held[span.sequence] = max(self._held.get(span.sequence, 0), span.start + span.count)

    def _grown(self, span: Span, rows: Tensor, memory: Tensor | None) -> Tensor | None:
        wanted = max(span.capacity, span.start + span.count)
        others = sum(held.nbytes for held in self._rows.values())
        if others + wanted * rows.shape[1] * rows.itemsize > self.most_bytes:
            return None
        bigger = torch.empty((wanted, rows.shape[1]), dtype=rows.dtype)
        if memory is not None:
            bigger[: len(memory)] = memory
        self._rows[span.sequence] = bigger
        return bigger

    def _forget(self, number: int) -> None:
        self._rows.pop(number, None)
        self._held.pop(number, None)
