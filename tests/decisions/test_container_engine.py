"""What a sidecar makes of what it sees of a container's server: its metrics, its health, its completions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from deepinfer.engine_shim.engines.container.completions import body_of, delta_of
from deepinfer.engine_shim.engines.container.figures import Capacity, Figures, capacity_of, figures_of
from deepinfer.engine_shim.engines.container.health import Answer, Standing, after, failure
from deepinfer.engine_shim.engines.container.load_meter import LoadMeter
from deepinfer.engine_shim.token_engine import EngineLoad, FinishReason, SamplingParams, TokenLogprob
from deepinfer.engine_shim.wire import GenerateDelta, GenerateRequest
from deepinfer.fleet.errors import EngineFailed

VLLM_0_32 = (Path(__file__).parent / "vllm_metrics.txt").read_text()
"""Of a real server with two requests running: `curl …/metrics`."""
OLDER_WITH_TWO_RANKS = """
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="a {b} c"} 3.0
vllm:num_requests_running{engine="1",model_name="a {b} c"} 4.0
vllm:gpu_cache_usage_perc{engine="0",model_name="m"} 0.5
vllm:gpu_cache_usage_perc{engine="1",model_name="m"} 0.25
vllm:time_per_output_token_seconds_sum{engine="0"} 6.0
vllm:time_per_output_token_seconds_count{engine="0"} 60.0
vllm:request_prompt_tokens_sum{engine="0"} NaN
vllm:request_prompt_tokens_sum{engine="1"} 1e+03
vllm:cache_config_info{block_size="16",num_gpu_blocks="10",num_gpu_blocks_override="None"} 1.0
vllm:cache_config_info{block_size="16",num_gpu_blocks="12",num_gpu_blocks_override="None"} 1.0
"""


def test_the_page_of_a_real_vllm() -> None:
    figures = figures_of(VLLM_0_32)
    assert figures is not None
    assert (figures.running, figures.waiting, figures.prompt_tokens) == (2, 0, 310)
    assert figures.kv_usage == pytest.approx(0.01507, abs=1e-4)
    assert all((figures.generation_tokens, figures.prefix_queries, figures.requests_ended))
    assert all((figures.token_seconds, figures.token_gaps, figures.prefill_seconds, figures.prefill_tokens))
    assert capacity_of(VLLM_0_32) == Capacity(block_size=32, blocks=200)


def test_older_names_and_all_ranks_together() -> None:
    assert figures_of(OLDER_WITH_TWO_RANKS) == Figures(
        running=7, kv_usage=0.375, token_seconds=6, token_gaps=60, prefill_tokens=1000
    )
    assert capacity_of(OLDER_WITH_TWO_RANKS) == Capacity(block_size=16, blocks=22)


@pytest.mark.parametrize("page", ["", "<html>", "python_info 1.0\nprocess_open_fds 3.0\n"])
def test_another_server_s_page_says_nothing(page: str) -> None:
    assert (figures_of(page), capacity_of(page)) == (None, Capacity())


def test_rates_are_of_what_came_since_the_look_before() -> None:
    meter = LoadMeter(kv_blocks=100)
    meter.saw(Figures(token_seconds=50, token_gaps=100, prefill_tokens=10_000, prefill_seconds=100))
    assert meter.load == EngineLoad()  # what was before this process says nothing of now
    rates: dict[str, Any] = {"token_seconds": 51, "token_gaps": 110, "prefill_tokens": 10_800, "prefill_seconds": 104}
    meter.saw(Figures(running=2, waiting=1, kv_usage=0.25, **rates))
    first = EngineLoad(
        running=2, waiting=1, kv_blocks_used=25, prefill_tokens_per_second=200, seconds_per_output_token=0.1
    )
    assert meter.load == first
    meter.saw(Figures(running=1, kv_usage=0.25, token_seconds=54, token_gaps=120, prefill_tokens=1, prefill_seconds=1))
    assert meter.load.seconds_per_output_token == pytest.approx(0.2)
    assert meter.load.prefill_tokens_per_second == 200  # the counters began anew


@pytest.mark.parametrize(
    "step",
    [
        Figures(running=1, prompt_tokens=1),
        Figures(running=1, generation_tokens=1),
        Figures(running=1, prefix_queries=1),
        Figures(running=1, kv_usage=0.1),
    ],
)
def test_every_sign_of_a_step_is_work(step: Figures) -> None:
    meter = LoadMeter(kv_blocks=1)
    meter.saw(Figures(running=1))
    before = meter.work_done
    meter.saw(Figures(running=2, waiting=7))  # which came; nothing was computed
    assert (meter.work_done, meter.moved) == (before, False)
    meter.saw(step)
    assert (meter.work_done, meter.moved) == (before + 1, True)


def test_what_cannot_be_seen_is_not_taken_for_a_stall() -> None:
    meter = LoadMeter(kv_blocks=1)
    meter.saw(Figures(running=1))
    before = meter.work_done
    meter.worked()
    assert (meter.work_done, meter.in_hand) == (before + 1, 1)


def test_requests_that_ended_are_noticed() -> None:
    meter = LoadMeter(kv_blocks=1)
    assert [meter.saw(Figures(requests_ended=n)) for n in (5, 5, 6)] == [False, False, True]


FINE, CLOSED, DEAD, UNWELL, SILENT = Answer


@pytest.mark.parametrize(
    ("answers", "reason"),
    [
        ([FINE] * 100, None),
        ([CLOSED, CLOSED, FINE, CLOSED, CLOSED], None),
        ([CLOSED] * 3, "its server does not listen any more"),
        ([FINE, DEAD, CLOSED], None),
        ([FINE, DEAD, FINE, DEAD], None),
        ([DEAD, DEAD], "its server says that its engine is dead (503)"),
        ([SILENT, SILENT, FINE, SILENT, SILENT], None),
        ([SILENT] * 3, "its server has not answered /health for 18 s"),
        ([UNWELL] * 3, "its server has answered /health with errors for 18 s"),
        ([SILENT, DEAD, SILENT], "its server has not answered /health for 18 s"),
    ],
)
def test_what_its_answers_mean(answers: list[Answer], reason: str | None) -> None:
    standing = Standing()
    for answer in answers:
        standing = after(standing, answer, 6.0)
    assert failure(standing) == reason


def test_a_typed_request_is_a_streamed_completion() -> None:
    sampling = SamplingParams(max_tokens=0, temperature=0.5, logit_bias=((7, 2.0),), stop_token_ids=(3,), min_tokens=1)
    body = body_of(GenerateRequest("r", (1, 2), sampling))
    assert (body["prompt"], body["max_tokens"], body["logit_bias"]) == ([1, 2], None, {"7": 2.0})
    assert (body["stop_token_ids"], body["temperature"], body["min_tokens"], body["stream"]) == ([3], 0.5, 1, True)
    assert body_of(GenerateRequest("r", "text", SamplingParams(max_tokens=4)))["prompt"] == "text"


def choice(**fields: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "text": " a", "finish_reason": None, **fields}]}


@pytest.mark.parametrize(
    ("event", "delta"),
    [
        (choice(token_ids=[5]), GenerateDelta(token_ids=(5,), text=" a")),
        (choice(finish_reason="length"), GenerateDelta(text=" a", finish_reason=FinishReason.LENGTH)),
        (
            choice(finish_reason="abort"),
            GenerateDelta(text=" a", finish_reason=FinishReason.ERROR, error="The engine ended the answer: abort."),
        ),
        (
            choice(
                logprobs={
                    "tokens": ["token_id:5"],
                    "token_logprobs": [-2.0],
                    "top_logprobs": [{"token_id:9": -3.0, "token_id:6": -1.0}],
                }
            ),
            GenerateDelta(text=" a", logprobs=(TokenLogprob(5, -2.0, ((6, -1.0), (9, -3.0))),)),
        ),
    ],
)
def test_a_piece_of_a_completion_is_a_delta(event: dict[str, Any], delta: GenerateDelta) -> None:
    assert delta_of(event) == delta


def test_an_error_among_the_pieces_is_one() -> None:
    with pytest.raises(EngineFailed, match="broke the answer off: out of luck"):
        delta_of({"error": {"message": "out of luck", "code": 500}})
