"""What one step asks of every stage, and what comes back. Values only; they travel between stages as they are.

The head plans a `Batch`; every stage computes its spans in order and hands the rows on; the last one chooses tokens and
answers with a `StepResult`. Batches reach each stage in the order in which they were made.
"""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

from deepinfer.engine_shim.engines.layer_shard.sampling import Choice
from deepinfer.engine_shim.token_engine import SamplingParams

Count = Annotated[int, Meta(ge=0, le=1 << 40)]


class Span(Struct, frozen=True, array_like=True):
    """Tokens of one sequence, that get one attention call in every layer: `count` new ones after `start` held ones."""

    sequence: Count  # a number of its stay in the stages' memory; one that comes back has another
    start: Count
    count: Annotated[int, Meta(ge=1, le=1 << 24)]
    capacity: Count  # tokens that its memory must hold first
    again: bool = False  # one of several tokens of this sequence, that an earlier step computed one by one
    chooses: bool = False  # all its tokens are computed then, and the next one is chosen


class Opening(Struct, frozen=True, array_like=True):
    """What choosing a sequence's tokens depends on, besides their logits. Told once, before its first span."""

    sequence: Count
    sampling: SamplingParams
    end_token_ids: tuple[int, ...]
    seed: int
    drawn: Count  # tokens of its answer before these: where its random numbers go on
    prompt: tuple[int, ...] = ()  # where it is penalised to repeat it
    answer: tuple[int, ...] = ()  # chosen so far, by this engine


class Batch(Struct, frozen=True, array_like=True):
    """One step. Its spans are in the order that attention wants (`attention.RaggedBatch`)."""

    step: Count
    spans: tuple[Span, ...] = ()
    opened: tuple[Opening, ...] = ()
    ended: tuple[Count, ...] = ()  # forgotten first: their memory is free for this very step
    until: int | None = None  # the stage it ends at, where it only fills memory again

    @property
    def tokens(self) -> int:
        return sum(span.count for span in self.spans)


class StageTime(Struct, frozen=True, array_like=True):
    """What a step cost one stage, in seconds."""

    computing: float
    queued: float = 0.0  # it had arrived, and something else was computed


class StepResult(Struct, frozen=True, tag=True):
    """What came of a step."""

    step: Count
    epoch: Count = 0  # of the stages that computed it
    choices: tuple[tuple[int, Choice], ...] = ()  # sequence and its next token
    times: tuple[StageTime, ...] = ()  # of the stages in order
    error: str = ""  # why none of it was computed


def fits(batch: Batch, rows: int, kv_tokens: int) -> None:
    """Raises `ValueError` where a batch says something else than what came with it, or reaches beyond its memory."""
    if batch.tokens != rows:
        raise ValueError(f"{rows} rows came for {batch.tokens} tokens")
    for span in batch.spans:
        if not span.start + span.count <= span.capacity <= kv_tokens:
            raise ValueError(f"tokens {span.start} to {span.start + span.count} of a sequence with {span.capacity}")
    wanted = sum({span.sequence: span.capacity for span in batch.spans}.values())
    if wanted > kv_tokens:
        raise ValueError(f"memory for {wanted} tokens, of {kv_tokens}")
