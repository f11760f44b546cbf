"""`deepinfer plan` with a real folder: over devices as typed, and over a fleet of capped workers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.fleet import Fleet, eventually

DEEPINFER = Path(sys.executable).with_name("deepinfer")
MB = 10**6


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real model of 12 layers and 107 MB, tied, in several files."""
    import torch
    import transformers

    config = transformers.LlamaConfig(
        vocab_size=8000,
        hidden_size=768,
        intermediate_size=1024,
        num_hidden_layers=12,
        num_attention_heads=12,
        num_key_value_heads=4,
        max_position_embeddings=8192,
        tie_word_embeddings=True,
    )
    path = tmp_path_factory.mktemp("model")
    model = transformers.AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
    model.to(torch.bfloat16).save_pretrained(path, max_shard_size="30MB")
    return path


def asked(*arguments: str, exit_code: int = 0, server: str = "http://127.0.0.1:1") -> str:
    """What it printed, on stdout if it succeeded."""
    environment = {**os.environ, "DEEPINFER_SERVER": server}
    done = subprocess.run(
        [DEEPINFER, "plan", *arguments], env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == exit_code, done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout if exit_code == 0 else done.stderr


def as_json(*arguments: str, **how: Any) -> Any:
    return json.loads(asked(*arguments, "-o", "json", **how))


def test_a_plan_is_told_in_a_table_and_in_sentences(folder: Path) -> None:
    told = asked(str(folder), "--device", "a=100MB,b=200MB", "--context", "1024", "--concurrency", "4").splitlines()
    assert told[0] == "LlamaForCausalLM, 12 layers, bfloat16, 102 MiB of weights; 1,024 tokens for 4 requests at once."
    assert told[2].startswith("STAGE  DEVICE  LAYERS  WEIGHTS") and "FREE" in told[2] and "MS/TOKEN" in told[2]
    assert [line.split()[:3] for line in told[3:5]] == [["0", "a", "0-2"], ["1", "b", "3-11"]]
    assert told[6].startswith("Expected: ") and "per token of a lone request" in told[6]
    assert "guessed by kind" in told[-1]


def test_bytes_of_the_plan_are_those_of_the_files(folder: Path) -> None:
    stages = as_json(str(folder), "--device", "a=200MB,b=300MB", "--concurrency", "2")["stages"]
    stored = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    copy = 8000 * 768 * 2
    assert sum(stage["weight_bytes"] for stage in stages) == pytest.approx(stored + copy, rel=0.001)


def test_who_only_slows_it_down_is_left_out(folder: Path) -> None:
    told = as_json(
        *(str(folder), "--device", "a=300MB,bandwidth=20GB/s", "--device", "b=300MB,bandwidth=1GB/s"),
        *("--context", "512", "--concurrency", "1", "--hop-ms", "2"),
    )
    assert [stage["device"] for stage in told["stages"]] == ["a"]
    assert told["left_out"][0]["device"] == "b" and told["left_out"][0]["slower"] > 1


def test_layers_by_hand_are_compared_with_the_automatic_ones(folder: Path) -> None:
    devices = ("--device", "a=300MB,layer-ms=1,b=300MB,layer-ms=9")
    told = asked(str(folder), *devices, "--context", "512", "--layers", "2,10")
    assert "Layers go as told by hand." in told and "Warning: The automatic split, 12,0, is better" in told
    assert "23 together, and the model has 12" in asked(str(folder), *devices, "--layers", "13,10", exit_code=2)


def test_what_does_not_fit_is_refused_with_what_would(folder: Path) -> None:
    devices = ("--device", "80MB,80MB")
    said = asked(str(folder), *devices, "--context", "8192", exit_code=1)
    assert said.startswith("Error: The model does not fit: 8,192 tokens for 8 requests at once need ")
    assert "device-1 lacks " in said
    context = said.split("What would fit: ")[1].split(" tokens")[0].replace(",", "")
    assert as_json(str(folder), *devices, "--context", context)["fits"]


@pytest.mark.parametrize(
    ("arguments", "exit_code", "said"),
    [
        (("no-such-model",), 4, "neither a known name"),
        (("Qwen/Qwen3-0.6B-none-here",), 4, "was not fetched on this machine yet"),
        ((".", "--dtype", "int4"), 2, "dtype int4"),
        (("FOLDER", "--device", "much"), 2, "write NAME=11GB"),
        (("FOLDER", "--device", "1GB", "--reserve", "some"), 2, "--reserve"),
        (("FOLDER", "--device", "1GB", "--objective", "fun"), 2, "objective"),
        (("FOLDER", "--device", "1GB", "--layers", "a"), 2, "5,13,14"),
        (("FOLDER", "--device", "1GB", "--context", "9000"), 1, "takes 8,192 tokens at most"),
        (("FOLDER",), 3, "No deepinfer server answers"),
    ],
)
def test_what_is_wrong_is_told(folder: Path, arguments: tuple[str, ...], exit_code: int, said: str) -> None:
    assert said in asked(*(str(folder) if word == "FOLDER" else word for word in arguments), exit_code=exit_code)


@pytest.fixture
def capped(tmp_path: Path) -> Iterator[Fleet]:
    """A fleet whose workers share this machine and offer a part of it each."""
    with Fleet(tmp_path, worker="max_vram_mb = 150").running() as fleet:
        fleet.start_worker("node-2")
        yield fleet


def test_the_fleets_own_devices_are_planned_for(capped: Fleet, folder: Path) -> None:
    eventually(lambda: len(capped.get("/v1/nodes")) == 2)
    nodes = capped.get("/v1/nodes")
    assert [node["devices"][0]["memory_bytes"] for node in nodes] == [150 * MB] * 2
    told = as_json(str(folder), "--context", "512", "--concurrency", "4", server=capped.url)
    assert [(stage["device"], stage["start"], stage["stop"]) for stage in told["stages"]] == [
        ("node-1", 0, 6),
        ("node-2", 6, 12),
    ]
