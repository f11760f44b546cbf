"""What a user may ask for, and the sentence for everything else."""

from __future__ import annotations

from typing import Any

import pytest

from deepinfer.control_plane.management.admission import admitted, amended, default_name
from deepinfer.fleet.errors import InvalidRequest, NotBuiltYet
from deepinfer.fleet.parallelism import devices_needed, tensor_parallel_size
from deepinfer.fleet.resources import DeploymentSpec, EngineKind

SIM = {"model": "m", "engine": "sim"}


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("smollm2", "smollm2"),
        ("Qwen/Qwen2.5-0.5B-Instruct", "qwen2.5-0.5b-instruct"),
        ("org/Model:latest", "model-latest"),
        ("a" * 100, "a" * 63),
        ("org/x_", "x"),
        ("org/model/", "model"),
    ],
)
def test_the_default_name_comes_from_the_model(model: str, name: str) -> None:
    assert default_name(model) == name
    assert admitted({"model": model, "engine": "sim"})[0] == name


def test_a_whole_body_becomes_a_name_and_a_spec() -> None:
    name, spec = admitted({**SIM, "name": "chat", "replicas": 2, "engine_args": {"kv_blocks": 64}, "device": None})
    expected = DeploymentSpec(model="m", engine=EngineKind.SIM, replicas=2, engine_args={"kv_blocks": 64})
    assert (name, spec) == ("chat", expected)


@pytest.mark.parametrize(
    ("change", "param", "words"),
    [
        ({"model": None}, "model", "is required"),
        ({"model": ""}, "model", "a model's name"),
        ({"model": "../etc"}, "model", "a model's name"),
        ({"modle": "x"}, "modle", "did you mean model?"),
        ({"zzzzzz": 1}, "zzzzzz", "the fields are name, model"),
        ({"replicas": -1}, "replicas", "from 0 to 1024, not -1"),
        ({"replicas": "2"}, "replicas", 'whole number from 0 to 1024, not "2"'),
        ({"replicas": True}, "replicas", "not true"),
        ({"replicas": 1.5}, "replicas", "not 1.5"),
        (
            {"engine_version": "newest"},
            "engine_version",
            'that is installed, not "newest"',
        ),
        ({"engine_version": "../0.1"}, "engine_version", "a version"),
        ({"engine_version": "0.1x.y"}, "engine_version", "0.1x.y is not a version, such as 0.32.0"),
        ({"quantization": "a b"}, "quantization", "a method of vLLM's"),
        ({"quantization": "fp8"}, "quantization", "sim has no quantization"),
        ({"engine": "lama"}, "engine", '"vllm", "layer-shard" or "sim", not "lama"'),
        ({"device": "gpu"}, "device", '"auto", "cpu", or CUDA devices'),
        ({"dtype": "int4"}, "dtype", '"bfloat16", not "int4"'),
        ({"gpu_memory_utilization": 0}, "gpu_memory_utilization", "above 0"),
        ({"max_model_len": 1}, "max_model_len", "from 16"),
        ({"model_path": "models/x"}, "model_path", "absolute path"),
        ({"docker_image": "x"}, None, 'needs "backend": "docker"'),
        ({"engine_args": []}, "engine_args", "an object"),
        ({"engine_args": {"kv_block": 1}}, "engine_args.kv_block", "kv_blocks"),
        ({"engine_args": {"kv_blocks": "many"}}, "engine_args.kv_blocks", "kv_blocks"),
        ({"env": {"HF_TOKEN": "s3cret"}}, "env", "looks like a secret"),
        ({"env": {"A": 5}}, "env", "environment variables"),
        ({"env": {"A-B": "s3cret"}}, "env", "environment variables"),
        ({"name": "Chat"}, "name", "lower-case letters, digits, '.', '_' or '-', with a letter or digit at both ends"),
        ({"name": 7}, "name", "not 7"),
        ({"name": "a/b"}, "name", 'not "a/b"'),
        ({"model": "\ud800"}, None, "JSON"),
    ],
)
def test_a_wrong_field_is_named_with_what_is_allowed(change: dict[str, Any], param: str | None, words: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        admitted({**SIM, **change})
    assert words in str(refused.value)
    assert refused.value.param == param
    assert "s3cret" not in str(refused.value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"backend": "docker", "docker_image": "x"}, 'backend "docker"'),
        ({"tensor_parallel_size": 2}, "sim has no tensor_parallel_size above 1 yet"),
        ({"device": "cuda:0,cuda:1"}, "sim cannot use several devices yet"),
    ],
)
def test_what_is_not_built_yet_says_so(change: dict[str, Any], words: str) -> None:
    with pytest.raises(NotBuiltYet, match=words):
        admitted({**SIM, **change})


def test_changes_replace_whole_fields_and_null_restores_the_default() -> None:
    spec = admitted({**SIM, "engine_args": {"kv_blocks": 64, "block_size": 8}, "replicas": 3})[1]
    changed = amended(spec, {"engine_args": {"kv_blocks": 32}, "replicas": None}, "chat")
    assert (changed.engine_args, changed.replicas, changed.engine) == ({"kv_blocks": 32}, 1, EngineKind.SIM)


@pytest.mark.parametrize(
    ("change", "param"), [({"name": "other"}, "name"), ({"model": None}, "model"), ({"x": 1}, "x")]
)
def test_changes_are_checked_like_a_whole_body(change: dict[str, Any], param: str) -> None:
    spec = admitted(SIM)[1]
    assert amended(spec, {"name": "chat"}, "chat") == spec
    with pytest.raises(InvalidRequest) as refused:
        amended(spec, change, "chat")
    assert refused.value.param == param


@pytest.mark.parametrize(
    ("change", "devices", "size"),
    [
        ({}, 1, None),
        ({"tensor_parallel_size": 4}, 4, 4),
        ({"device": "0,1"}, 1, 2),
        ({"device": "cuda:2,3", "tensor_parallel_size": 2}, 2, 2),
        ({"device": "0,1,2,3", "engine_args": {"pipeline-parallel-size": 2}}, 2, 2),
        ({"device": "cuda:0"}, 1, None),
        ({"engine_args": {"pipeline_parallel_size": 2, "dp": 2}}, 4, None),
    ],
)
def test_vllm_takes_as_many_devices_as_it_is_given(change: dict[str, Any], devices: int, size: int | None) -> None:
    spec = admitted({"model": "m", **change})[1]
    assert spec.engine is EngineKind.VLLM
    assert (devices_needed(spec), tensor_parallel_size(spec)) == (devices, size)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"device": "0,1", "tensor_parallel_size": 1}, 'device "0,1" names 2, but its parallel sizes need 1'),
        ({"device": "0,1", "tensor_parallel_size": 3}, "names 2, but its parallel sizes need 3"),
        ({"device": "0", "tensor_parallel_size": 2}, "names 1, but its parallel sizes need 2"),
        ({"device": "0,1,2", "engine_args": {"pipeline_parallel_size": 2}}, "names 3, but its parallel sizes need 2"),
        ({"device": "0,cuda:0"}, "names a device twice"),
        ({"engine_args": {"tensor_parallel_size": 2}}, 'use the field "tensor_parallel_size"'),
        ({"engine_args": {"port": 1}}, "the engine has no port of its own"),
    ],
)
def test_contradictions_are_refused(change: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidRequest, match=words):
        admitted({"model": "m", **change})
