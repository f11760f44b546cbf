"""What the vLLM engine decides without vLLM: flags, stages of loading, the meaning of statistics, moved names."""

from __future__ import annotations

import os
from argparse import ArgumentParser, BooleanOptionalAction, Namespace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from deepinfer.engine_shim.engines.vllm import environment
from deepinfer.engine_shim.engines.vllm.arguments import parsed
from deepinfer.engine_shim.engines.vllm.imports import Vllm, called
from deepinfer.engine_shim.engines.vllm.load_meter import LoadMeter
from deepinfer.engine_shim.engines.vllm.loading_progress import stage_of
from deepinfer.engine_shim.engines.vllm_command import command_line
from deepinfer.fleet.errors import EngineWillNotStart
from deepinfer.fleet.launch import EngineLaunch
from deepinfer.fleet.spec import EngineKind


def launch(**fields: Any) -> EngineLaunch:
    given: dict[str, Any] = {"model_path": Path("/models/m"), "device": "cuda", "served_names": ("chat", "org/m")}
    given |= fields
    return EngineLaunch(placement="p", epoch=1, engine=EngineKind.VLLM, socket=Path("/run/s.sock"), **given)


def test_the_fields_of_a_deployment_become_flags() -> None:
    line = command_line(launch(dtype="bfloat16", max_model_len=2048, tensor_parallel_size=2, quantization="fp8"))
    assert line == [
        "--model=/models/m",
        "--served-model-name",
        "chat",
        "org/m",
        "--dtype=bfloat16",
        "--max-model-len=2048",
        "--quantization=fp8",
        "--tensor-parallel-size=2",
        "--enable-prompt-tokens-details",
        "--gpu-memory-utilization=0.9",
    ]


def test_the_cpu_has_no_gpu_memory_to_use() -> None:
    assert not any("gpu-memory" in word for word in command_line(launch(device="cpu")))


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (8, ["--flag-x=8"]),
        (True, ["--flag-x"]),
        (False, ["--no-flag-x"]),
        (None, []),
        ("-1", ["--flag-x=-1"]),
        (["a", "b"], ["--flag-x", "a", "b"]),
        ({"method": "ngram"}, ['--flag-x={"method": "ngram"}']),
        ([{"name": "l", "path": "/p"}], ["--flag-x", '{"name": "l", "path": "/p"}']),
    ],
)
def test_engine_args_of_every_kind_become_words(value: Any, words: list[str]) -> None:
    line = command_line(launch(engine_args={"flag-x": value}))
    assert line[len(command_line(launch())) :] == words


def test_the_users_own_argument_wins_over_the_field() -> None:
    line = command_line(launch(max_model_len=100, engine_args={"max-model-len": 50}))
    assert [word for word in line if "max-model" in word] == ["--max-model-len=50"]


def the_parser(parser: ArgumentParser) -> ArgumentParser:
    for name in ("model", "served-model-name", "dtype", "gpu-memory-utilization"):
        parser.add_argument(f"--{name}", nargs="*" if name.startswith("served") else None)
    parser.add_argument("--max-num-seqs", type=int)
    parser.add_argument("--enforce-eager", action=BooleanOptionalAction)
    for switch in ("--headless", "--enable-prompt-tokens-details"):
        parser.add_argument(switch, action="store_true")
    return parser


def refuse_bad_chat_template(arguments: Namespace) -> None:
    if arguments.dtype == "odd":
        raise ValueError("odd is no dtype")


VLLM = Vllm(
    "9.9",
    {
        "make_arg_parser": the_parser,
        "FlexibleArgumentParser": ArgumentParser,
        "validate_parsed_serve_args": refuse_bad_chat_template,
    },
    (ValueError,),
)


def test_false_leaves_out_a_flag_that_can_only_be_switched_on() -> None:
    arguments = parsed(VLLM, launch(engine_args={"enforce_eager": False, "headless": False}), {"max_num_seqs": 3})
    assert (arguments.enforce_eager, arguments.headless, arguments.max_num_seqs) == (False, False, 3)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"engine_args": {"max_num_seqs": "many"}}, "max-num-seqs: invalid int value: 'many'"),
        ({"engine_args": {"no_such": 1}}, "no-such"),
        ({"dtype": "odd"}, "odd is no dtype"),
    ],
)
def test_what_the_parser_refuses_is_a_sentence_and_no_exit(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(EngineWillNotStart, match=words):
        parsed(VLLM, launch(**fields), {})


def test_a_function_gets_what_it_asks_for_by_name() -> None:
    def old(args: str) -> str:
        return args

    def new(args: str, supported_tasks: str, later: int = 3) -> str:
        return f"{args} {supported_tasks} {later}"

    known = {"args": "a", "supported_tasks": "t", "state": "s"}
    assert called(old, known, "0.11.0") == "a"
    assert called(new, known, "0.33.0") == "a t 3"


def test_a_function_that_needs_more_says_so() -> None:
    def newest(args: str, moon_phase: str) -> str:
        return args + moon_phase

    with pytest.raises(EngineWillNotStart, match=r"vLLM 0.99.0 differs .* newest now also needs moon_phase"):
        called(newest, {"args": "a"}, "0.99.0")


@pytest.mark.parametrize(
    ("line", "stage"),
    [
        ("Loading safetensors checkpoint shards:  33% Completed | 1/3 [00:00<00:00,  2.90it/s]", "33% Completed | 1/3"),
        ("INFO 11-21 [default_loader.py:397] Loading weights took 1.17 seconds", "weights loaded in 1.17 seconds"),
        ("INFO 11-21 [kv_cache_utils.py:1] CPU KV cache size: 46,592 tokens", "room for 46,592 tokens"),
        ("Capturing CUDA graphs (mixed prefill-decode, PIECEWISE):  51%|#####     | 18/35", "CUDA graphs: 51%"),
        ("INFO 11-21 [core.py:100] Initializing a V1 LLM engine (v0.32.0) with config: model='x'", "the engine core"),
    ],
)
def test_the_log_tells_the_stage_of_loading(line: str, stage: str) -> None:
    assert stage in (stage_of(f"(EngineCore pid=1) {line}") or "")


def test_other_lines_tell_nothing() -> None:
    assert stage_of("INFO 11-21 [api_utils.py:286] non-default args: {'port': 18000}") is None


def scheduler(running: int, usage: float) -> Any:
    return SimpleNamespace(num_running_reqs=running, kv_cache_usage=usage)


def iteration(latencies: list[float], *finished: Any, first_tokens: int = 0) -> Any:
    return SimpleNamespace(
        inter_token_latencies_iter=latencies,
        time_to_first_tokens_iter=[0.1] * first_tokens,
        finished_requests=list(finished),
    )


def test_the_load_is_what_the_last_step_and_the_open_requests_say() -> None:
    meter = LoadMeter()
    meter.record(scheduler(2, 0.4), iteration([0.02, 0.04]), engine=0)
    meter.record(scheduler(3, 0.5), None, engine=0)
    load = meter.load(unfinished=5, waiting_tokens=70, kv_blocks=100)
    assert (load.running, load.waiting, load.waiting_prefill_tokens, load.kv_blocks_used) == (3, 2, 70, 50)
    assert load.seconds_per_output_token == pytest.approx(0.03)


@pytest.mark.parametrize(
    "prefilled",
    [
        pytest.param(iteration([0.5, 0.5], first_tokens=1), id="the end of a prompt"),
        pytest.param(iteration([0.5, 0.5]), id="a part of one"),
        pytest.param(iteration([0.5], SimpleNamespace(num_prompt_tokens=1, prefill_time=0)), id="and another ended"),
    ],
)
def test_the_time_of_a_prompt_is_not_a_tokens(prefilled: Any) -> None:
    meter = LoadMeter()
    meter.record(scheduler(2, 0.5), iteration([0.02, 0.02]), engine=0)
    meter.record(scheduler(3 - len(prefilled.finished_requests), 0.5), prefilled, engine=0)
    assert meter.load(3, 0, 1).seconds_per_output_token == pytest.approx(0.02)


def test_an_ended_requests_last_token_counts() -> None:
    meter = LoadMeter()
    ended = SimpleNamespace(num_prompt_tokens=1, prefill_time=0)
    meter.record(scheduler(1, 0.5), iteration([0.02, 0.04], ended), engine=0)
    assert meter.load(1, 0, 1).seconds_per_output_token == pytest.approx(0.03)


def test_aborted_requests_run_no_more_though_no_step_follows() -> None:
    meter = LoadMeter()
    meter.record(scheduler(3, 0.5), None, engine=0)
    load = meter.load(unfinished=0, waiting_tokens=0, kv_blocks=100)
    assert (load.running, load.waiting, load.kv_blocks_used) == (0, 0, 0)


def test_the_prefill_rate_counts_only_what_was_computed() -> None:
    meter = LoadMeter()
    request = SimpleNamespace(num_prompt_tokens=300, num_cached_tokens=100, prefill_time=0.5)
    meter.record(None, iteration([], request), engine=0)
    assert meter.load(0, 0, 1).prefill_tokens_per_second == pytest.approx(400)


def test_every_step_is_work_done_even_one_without_tokens() -> None:
    meter = LoadMeter()
    meter.record(scheduler(1, 0.1), None, engine=0)
    meter.record(scheduler(1, 0.1), iteration([]), engine=1)
    assert meter.work_done == 2


def prepared(monkeypatch: pytest.MonkeyPatch, library: Path, device: str, preloaded: str) -> tuple[str, str | None]:
    """What a vLLM's processes would find as LD_PRELOAD and KMP_BLOCKTIME."""
    monkeypatch.setattr(os, "environ", {"LD_PRELOAD": preloaded})
    monkeypatch.setattr(environment, "OPENMP", library)
    environment.prepare(device)
    return os.environ["LD_PRELOAD"], os.environ.get("KMP_BLOCKTIME")


def test_on_a_cpu_intel_s_openmp_is_preloaded_where_it_is_and_the_user_chose_none(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    library = tmp_path / "libiomp5.so"
    assert prepared(monkeypatch, library, "cpu", "") == ("", None)  # there is none, as on ARM
    library.touch()
    assert prepared(monkeypatch, library, "cpu", "") == (str(library), "5")
    assert prepared(monkeypatch, library, "cpu", "/a/tcmalloc.so") == (f"{library}:/a/tcmalloc.so", "5")
    assert prepared(monkeypatch, library, "cpu", "/a/libgomp.so.1") == ("/a/libgomp.so.1", None)
    assert prepared(monkeypatch, library, "0,1", "") == ("", None)
