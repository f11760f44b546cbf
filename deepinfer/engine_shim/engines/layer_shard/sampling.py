"""Choosing the next token of every row of a step's logits.

A step in which everybody is greedy and asks for nothing else is one argmax. Everything else goes row by row through the
penalties and, vectorised over the rows, through temperature, top-k, top-p and min-p, in vLLM's order. A row's random
numbers depend on its seed and the token's place in the answer alone, so that the answer is the same whoever shares the
step, and goes on as it would have where another stage takes over.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from deepinfer.engine_shim.token_engine import SamplingParams, TokenLogprob

GREEDY_BELOW = 1e-5  # temperatures so small that dividing by them would overflow
_64_BITS = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class Row:
    """What choosing a sequence's next token depends on, besides its logits."""

    params: SamplingParams
    prompt: tuple[int, ...]
    answer: Sequence[int]
    end_token_ids: tuple[int, ...]
    seed: int
    drawn: int  # tokens before this one that had random numbers

    @property
    def greedy(self) -> bool:
        return self.params.temperature < GREEDY_BELOW

    @property
    def plain(self) -> bool:
        """The logits are used as they are."""
        p = self.params
        penalised = p.presence_penalty or p.frequency_penalty or p.repetition_penalty != 1.0
        return not (penalised or p.logit_bias or self.too_short)

    @property
    def too_short(self) -> bool:
        return len(self.answer) < self.params.min_tokens


@dataclass(frozen=True, slots=True)
class Choice:
    """A chosen token and, where asked for, how likely it was."""

    token_id: int
    logprob: TokenLogprob | None = None


@torch.inference_mode()
def choose(logits: Tensor, rows: Sequence[Row]) -> list[Choice]:
    """One choice for each row of `logits` [row, vocabulary]."""
    if all(row.greedy and row.plain and row.params.logprobs is None for row in rows):
        return [Choice(token) for token in logits.argmax(-1).tolist()]
    raw = logits.float()
    adjusted = torch.stack([_adjusted(line, row) for line, row in zip(raw, rows, strict=True)])
    tokens = adjusted.argmax(-1)
    drawn = [number for number, row in enumerate(rows) if not row.greedy]
    if drawn:
        tokens[drawn] = _drawn(adjusted[drawn], [rows[number] for number in drawn])
    ids: list[int] = tokens.tolist()
    return [Choice(token, _logprob(line, token, row)) for line, token, row in zip(raw, ids, rows, strict=True)]


def _adjusted(logits: Tensor, row: Row) -> Tensor:
    if row.plain:
        return logits
    logits, p = logits.clone(), row.params
    _penalise(logits, row)
    for token, bias in p.logit_bias:
        logits[token] += bias
    if row.too_short:
        logits[list(row.end_token_ids + p.stop_token_ids)] = -torch.inf
    return logits


def _penalise(logits: Tensor, row: Row) -> None:
    """Repetition counts prompt and answer and scales; presence and frequency count the answer and subtract."""
    p = row.params
    if p.repetition_penalty != 1.0:
        seen = torch.tensor(sorted({*row.prompt, *row.answer}), device=logits.device)
        scores = logits[seen]
        logits[seen] = torch.where(scores > 0, scores / p.repetition_penalty, scores * p.repetition_penalty)
    if row.answer and (p.presence_penalty or p.frequency_penalty):
        said, times = torch.unique(torch.tensor(list(row.answer), device=logits.device), return_counts=True)
        logits[said] -= p.presence_penalty + p.frequency_penalty * times


def _drawn(logits: Tensor, rows: Sequence[Row]) -> Tensor:
    """A token of each row, at random from what temperature, top-k, top-p and min-p leave."""
    logits = logits / _column(logits, [row.params.temperature for row in rows])
    logits = _without_unlikely(logits, rows)
    # the largest of p/e, with e exponential, is a draw from p; every row takes its numbers from its own generator
    noise = torch.stack([_exponential(logits, row) for row in rows])
    return (logits.softmax(-1) / noise).argmax(-1)


def _exponential(logits: Tensor, row: Row) -> Tensor:
    generator = torch.Generator().manual_seed(_mixed(row.seed, row.drawn))
    numbers = torch.empty(logits.shape[1]).exponential_(generator=generator)
    return numbers.clamp_min_(torch.finfo(torch.float32).tiny).to(logits.device)


def _mixed(seed: int, place: int) -> int:
    """A seed for each place, unlike its neighbours' (SplitMix64, Steele et al. 2014)."""
    mixed = (seed + (place + 1) * 0x9E3779B97F4A7C15) & _64_BITS
    mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & _64_BITS
    mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & _64_BITS
    return mixed ^ (mixed >> 31)


def _without_unlikely(logits: Tensor, rows: Sequence[Row]) -> Tensor:
    params = [row.params for row in rows]
    if any(p.top_k > 0 or p.top_p < 1.0 for p in params):
        ordered, places = logits.sort(dim=-1, descending=True, stable=True)
        _cut_top_k(ordered, [p.top_k for p in params])
        _cut_top_p(ordered, [p.top_p for p in params])
        logits = torch.empty_like(logits).scatter_(-1, places, ordered)
    if any(p.min_p > 0 for p in params):
        likely = logits.softmax(-1)
        least = likely.amax(-1, keepdim=True) * _column(logits, [p.min_p for p in params])
        logits = logits.masked_fill(likely < least, -torch.inf)
    return logits


def _cut_top_k(ordered: Tensor, top_k: Sequence[int]) -> None:
    size = ordered.shape[-1]
    limits = _column(ordered, [k if k > 0 else size for k in top_k])
    ordered.masked_fill_(torch.arange(size, device=ordered.device) >= limits, -torch.inf)


def _cut_top_p(ordered: Tensor, top_p: Sequence[float]) -> None:
    """Keep the fewest likeliest tokens that together reach `top_p`; always the first."""
    likely = ordered.softmax(-1)
    before = likely.cumsum(-1) - likely
    unlikely = before >= _column(ordered, [p if p < 1.0 else torch.inf for p in top_p])
    unlikely[:, 0] = False
    ordered.masked_fill_(unlikely, -torch.inf)


def _column(like: Tensor, values: Sequence[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float32, device=like.device)[:, None]


def _logprob(raw: Tensor, token: int, row: Row) -> TokenLogprob | None:
    """Of the model's own distribution, before penalties and temperature."""
    if row.params.logprobs is None:
        return None
    logprobs = raw.log_softmax(-1)
    best, places = logprobs.topk(min(row.params.logprobs, logprobs.shape[0]))
    top = tuple(zip(places.tolist(), best.tolist(), strict=True))
    return TokenLogprob(token, float(logprobs[token]), top)
