"""One stage at work: its layers, and what it holds of each sequence. It obeys batches and decides nothing.

A batch that fails leaves the sequences in it half computed; the head ends them.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field

import torch
from torch import Tensor

from deepinfer.engine_shim.engines.layer_shard.attention import Segment
from deepinfer.engine_shim.engines.layer_shard.batch import Batch, Opening, Span
from deepinfer.engine_shim.engines.layer_shard.kv import KvSlab
from deepinfer.engine_shim.engines.layer_shard.sampling import Choice, Row, choose
from deepinfer.engine_shim.engines.layer_shard.stage import Stage

Choices = tuple[tuple[int, Choice], ...]


@dataclass
class _Answer:
    """A sequence's answer as far as this stage chose it."""

    opening: Opening
    tokens: list[int] = field(default_factory=list)

    def row(self) -> Row:
        o = self.opening
        drawn = o.drawn + len(self.tokens) - len(o.answer)
        return Row(o.sampling, o.prompt, self.tokens, o.end_token_ids, o.seed, drawn)


class StageWork:
    """Computes batches, in order."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self._slabs: dict[int, KvSlab] = {}
        self._answers: dict[int, _Answer] = {}

    @property
    def kv_tokens_held(self) -> int:
        return sum(slab.capacity for slab in tuple(self._slabs.values()))  # asked by other threads too

    def compute(self, batch: Batch, given: Tensor) -> Tensor:
        """The rows after this stage's layers, [token, width]. `given` is token ids [token] on the first stage, else
        the rows of the stage before."""
        self._obey(batch)
        if not batch.spans:
            return torch.empty(0)
        segments = [Segment(self._slab(span), span.start, span.count, span.again) for span in batch.spans]
        places = itertools.chain.from_iterable(range(span.start, span.start + span.count) for span in batch.spans)
        positions = torch.tensor(list(places), device=self.stage.device)
        return self.stage.forward(given, positions, segments)

    def choose(self, batch: Batch, hidden: Tensor) -> Choices:
        """The next tokens, from what `compute` gave. Only the last stage can."""
        ends = itertools.accumulate(span.count for span in batch.spans)
        last = [(span.sequence, end - 1) for span, end in zip(batch.spans, ends, strict=True) if span.chooses]
        if not last:
            return ()
        answers = [self._answers[sequence] for sequence, _ in last]
        choices = choose(self.stage.logits(hidden[[row for _, row in last]]), [answer.row() for answer in answers])
        for answer, choice in zip(answers, choices, strict=True):
            answer.tokens.append(choice.token_id)
        return tuple((sequence, choice) for (sequence, _), choice in zip(last, choices, strict=True))

    def release(self) -> None:
        """Free weights and memory; nothing can be computed afterwards."""
        self._slabs.clear()
        self._answers.clear()
        self.stage.release()

    def _obey(self, batch: Batch) -> None:
        for number in batch.ended:
            self._slabs.pop(number, None)
            self._answers.pop(number, None)
        if self.stage.shape.last:
            self._answers |= {o.sequence: _Answer(o, list(o.answer)) for o in batch.opened}

    def _slab(self, span: Span) -> KvSlab:
        slab = self._slabs.get(span.sequence)
        if slab is None:
            slab = self._slabs[span.sequence] = KvSlab(self.stage.kv_shape, span.capacity)
        elif slab.capacity < span.capacity:
            slab.grow(span.capacity, slab.capacity)
        return slab
