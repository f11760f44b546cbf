"""Sampling against plain arithmetic, one row at a time."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import pytest
import torch

from deepinfer.engine_shim.engines.layer_shard.sampling import Row, choose
from deepinfer.engine_shim.token_engine import SamplingParams

SIZE = 12


def row(answer: tuple[int, ...] = (), prompt: tuple[int, ...] = (1,), seed: int = 0, **params: Any) -> Row:
    sampling = SamplingParams(**{"max_tokens": 5, "temperature": 0, **params})
    return Row(sampling, prompt, answer, (2,), seed, len(answer))


@pytest.fixture
def logits() -> torch.Tensor:
    return torch.randn(1, SIZE, generator=torch.Generator().manual_seed(3)) * 2


def plain_probabilities(logits: list[float], params: SamplingParams) -> list[float]:
    """Temperature, top-k, top-p, min-p, written as they are defined."""
    weights = [math.exp(x / params.temperature) for x in logits]
    order = sorted(range(SIZE), key=lambda i: -weights[i])
    if params.top_k:
        order = order[: params.top_k]
    total, before, kept = sum(weights[i] for i in order), 0.0, list[int]()
    for i in order:
        if kept and before >= params.top_p:
            break
        kept.append(i)
        before += weights[i] / total
    total = sum(weights[i] for i in kept)
    kept = [i for i in kept if weights[i] >= params.min_p * weights[kept[0]]]
    total = sum(weights[i] for i in kept)
    return [weights[i] / total if i in kept else 0.0 for i in range(SIZE)]


@pytest.mark.parametrize(
    "params",
    [
        {"temperature": 1.0},
        {"temperature": 0.5},
        {"temperature": 2.0, "top_k": 3},
        {"temperature": 1.0, "top_p": 0.6},
        {"temperature": 1.5, "top_p": 0.0},
        {"temperature": 2.0, "min_p": 0.3},
        {"temperature": 1.5, "top_k": 6, "top_p": 0.8, "min_p": 0.1},
    ],
    ids=str,
)
def test_draws_follow_the_distribution(params: dict[str, Any], logits: torch.Tensor) -> None:
    draws = 4000
    rows = [row(seed=seed, **params) for seed in range(draws)]
    seen = Counter(choice.token_id for choice in choose(logits.expand(draws, -1), rows))
    expected = plain_probabilities(logits[0].tolist(), rows[0].params)
    for token, probability in enumerate(expected):
        if probability == 0.0:
            assert seen[token] == 0
        else:
            assert abs(seen[token] / draws - probability) < 5 * math.sqrt(probability / draws) + 1e-3


def test_penalties_and_bias_move_the_logits_as_defined(logits: torch.Tensor) -> None:
    prompt, answer = (1, 3), (4, 4, 5)
    params: dict[str, Any] = {
        "repetition_penalty": 1.7,
        "presence_penalty": 0.4,
        "frequency_penalty": 0.3,
        "logit_bias": ((6, 1.5), (7, -100.0)),
    }
    expected = logits[0].tolist()
    for token in {*prompt, *answer}:
        expected[token] = expected[token] / 1.7 if expected[token] > 0 else expected[token] * 1.7
    for token, times in Counter(answer).items():
        expected[token] -= 0.4 + 0.3 * times
    expected[6] += 1.5
    expected[7] -= 100.0
    ranked = sorted(range(SIZE), key=lambda i: -expected[i])
    # taking the winner out one by one shows the whole order the penalties leave
    for place, token in enumerate(ranked[:-1]):
        out = tuple((t, -1e6) for t in ranked[:place])
        both = (*params["logit_bias"], *out)
        (choice,) = choose(logits, [row(answer, prompt, **{**params, "logit_bias": both})])
        assert choice.token_id == token


def test_end_tokens_wait_for_the_shortest_answer(logits: torch.Tensor) -> None:
    logits[0, 2], logits[0, 8] = 50.0, 40.0
    waiting = row((), min_tokens=1, stop_token_ids=(8,))
    (choice,) = choose(logits, [waiting])
    assert choice.token_id not in (2, 8)
    (choice,) = choose(logits, [row((4,), min_tokens=1)])
    assert choice.token_id == 2


def test_logprobs_are_the_models_own(logits: torch.Tensor) -> None:
    expected = logits[0].double().log_softmax(-1)
    (choice,) = choose(logits, [row((4,), temperature=0.3, frequency_penalty=2.0, logprobs=3)])
    assert choice.logprob is not None
    assert choice.logprob.logprob == pytest.approx(float(expected[choice.token_id]), abs=1e-5)
    best = expected.topk(3)
    assert [token for token, _ in choice.logprob.top] == best.indices.tolist()
    assert [value for _, value in choice.logprob.top] == pytest.approx(best.values.tolist(), abs=1e-5)


def test_rows_do_not_touch_each_other(logits: torch.Tensor) -> None:
    mixed = [
        row(),
        row(seed=5, temperature=1.0),
        row((4,), frequency_penalty=9.0),
        row(logprobs=0),
        row(seed=6, top_k=1),
    ]
    together = choose(logits.expand(len(mixed), -1), mixed)
    fresh = [
        row(),
        row(seed=5, temperature=1.0),
        row((4,), frequency_penalty=9.0),
        row(logprobs=0),
        row(seed=6, top_k=1),
    ]
    assert together == [choose(logits, [one])[0] for one in fresh]
