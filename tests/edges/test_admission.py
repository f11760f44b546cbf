"""What a user may ask for, and the sentence for everything else."""

from __future__ import annotations

from typing import Any

import pytest

from deepinfer.control_plane.management.admission import admitted, admitted_all, amended, default_name
from deepinfer.fleet.errors import InvalidRequest
from deepinfer.fleet.parallelism import devices_needed, tensor_parallel_size
from deepinfer.fleet.spec import Backend, DeploymentSpec, EngineKind

SIM = {"model": "m", "engine": "sim"}


def nested(depth: int) -> list[Any]:
    found: list[Any] = []
    for _ in range(depth):
        found = [found]
    return found


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


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({}, 'must be {"deployments"'),
        ({"deployments": [SIM], "more": 1}, 'must be {"deployments"'),
        ({"deployments": SIM}, 'must be {"deployments"'),
        ({"deployments": [SIM, "m"]}, r"deployments\[1\] must be an object of at most 65536 bytes"),
        ({"deployments": [{**SIM, "env": {"A": "x" * 70_000}}]}, r"deployments\[0\] must be an object of at most"),
        ({"deployments": [SIM, {**SIM, "name": "m"}]}, "m is there twice"),
        ({"deployments": [{**SIM, "name": "b", "replicas": -1}]}, "b: replicas must be"),
    ],
)
def test_what_is_wrong_with_one_of_many_is_told_with_its_name_or_number(body: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidRequest, match=words):
        admitted_all(body)


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
        ({"role": "decoder"}, "role", '"both", "prefill" or "decode", not "decoder"'),
        ({"role": "decode", "engine": "layer-shard"}, "role", "layer-shard cannot hand its KV cache over"),
        ({"role": "prefill", "engine": "vllm"}, "role", 'role "prefill" needs engine_args.kv_transfer_config, such as'),
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
        ({"env": {"A": "s3cret\0"}}, "env", "A holds a NUL character"),
        ({"env": {"A-B": "s3cret"}}, "env", "environment variables"),
        ({"name": "Chat"}, "name", "lower-case letters, digits, '.', '_' or '-', with a letter or digit at both ends"),
        ({"name": 7}, "name", "not 7"),
        ({"name": "a/b"}, "name", 'not "a/b"'),
        ({"model": "\ud800"}, None, "JSON"),
        ({"device": "9" * 5000}, "device", "CUDA devices"),
        ({"engine": "vllm", "engine_args": {"pp": 10**4000}}, "engine_args", "at most 64 bits"),
        ({"engine": "vllm", "engine_args": {"a": [{"b": 1e999}]}}, "engine_args", "must be finite"),
        ({"engine": "vllm", "engine_args": {"a": nested(100)}}, "engine_args", "more than 32 deep"),
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
        ({"tensor_parallel_size": 2}, "sim has no tensor_parallel_size above 1 yet"),
        ({"device": "cuda:0,cuda:1"}, "sim cannot use several devices yet"),
    ],
)
def test_what_is_not_built_yet_says_so(change: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidRequest, match=words):
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


def test_changes_keep_what_a_newer_version_stored() -> None:
    stored = DeploymentSpec.model_validate({**SIM, "newer": 1, "rollout": {"max_surge": 2, "newer": 2}})
    changed = amended(stored, {"replicas": 3}, "chat")
    assert changed == stored.model_copy(update={"replicas": 3})
    with pytest.raises(InvalidRequest, match=r"rollout\.newer"):
        amended(stored, {"rollout": {"newer": 2}}, "chat")


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


MISSIONS = {
    "model": "Qwen2.5-1.5B-Instruct",
    "backend": "docker",
    "docker_image": "vllm/vllm-openai:v0.11.0",
    "model_path": "/path/to/model",
    "device": "0,1",
    "tensor_parallel_size": 2,
    "gpu_memory_utilization": 0.8,
}
BOXED = {"model": "m", "backend": "docker", "docker_image": "x"}


def test_a_model_in_a_container_as_the_documentation_shows_it() -> None:
    name, spec = admitted(MISSIONS)
    assert (name, spec.backend, spec.docker_image) == (
        "qwen2.5-1.5b-instruct",
        Backend.DOCKER,
        "vllm/vllm-openai:v0.11.0",
    )
    assert (devices_needed(spec), spec.gpu_memory_utilization, spec.docker) == (2, 0.8, None)


@pytest.mark.parametrize(
    "image",
    [
        "vllm-openai",
        "vllm/vllm-openai:v0.11.0",
        "quay.io/ascend/vllm-ascend:v0.11.0rc1",
        "localhost:5000/a/b_c.d-e:Latest",
        f"127.0.0.1:5000/x@sha256:{'0a' * 32}",
        f"x:1@sha256:{'0a' * 32}",
    ],
)
def test_images_that_docker_knows(image: str) -> None:
    assert admitted({**BOXED, "docker_image": image})[1].docker_image == image


@pytest.mark.parametrize(
    "docker",
    [
        {},
        {"network": "bridge", "pull": "always", "ipc": "host", "shm_size": "512m", "memory": "24g", "cpus": 0.5},
        {"entrypoint": ["vllm", "serve"], "user": "1000:1000", "kv_events": False},
        {"entrypoint": [], "ulimits": {"memlock": -1, "nofile": 65536}, "user": "model"},
        {"mounts": ["/data:/data", "/data/a:/a:ro", "/data/b:/b:rw"]},
    ],
)
def test_options_of_containers(docker: dict[str, Any]) -> None:
    spec = admitted({**BOXED, "docker": docker})[1]
    assert spec.docker is not None
    assert spec.docker.model_dump(mode="json", include=set(docker)) == docker


@pytest.mark.parametrize(
    ("change", "param", "words"),
    [
        ({"docker_image": None}, "docker_image", 'backend "docker" needs docker_image: such as "vllm/vllm-openai'),
        (
            {"docker_image": "Vllm/x"},
            "docker_image",
            'OpenAI API, such as .*, not "Vllm/x"',
        ),
        ({"docker_image": "x y"}, "docker_image", "an image that serves"),
        ({"docker_image": "-v"}, "docker_image", "an image that serves"),
        ({"docker_image": "x@sha256:1"}, "docker_image", "an image that serves"),
        ({"docker_image": "x/../y:"}, "docker_image", "an image that serves"),
        ({"device": "npu:0,cuda:0"}, "device", 'device "npu:0,cuda:0" names devices of several kinds'),
        ({"backend": "podman"}, "backend", '"native" or "docker", not "podman"'),
        ({"engine": "sim"}, "engine", 'runs images that serve vLLM\'s API; sim runs with "backend": "native"'),
        ({"engine": "layer-shard"}, "engine", 'layer-shard runs with "backend": "native"'),
        ({"engine_version": "0.11.0"}, "engine_version", "The image has its version; leave engine_version out"),
        ({"device": "sim:0"}, None, 'device sim:0 is simulated; it needs "engine": "sim"'),
        ({"engine_args": {"port": 1}}, "engine_args.port", "port"),
        ({"engine_args": {"host": "0.0.0.0"}}, "engine_args.host", "host"),  # noqa: S104
        ({"engine_args": {"api_key": "k"}}, "engine_args.api_key", "api_key"),
        ({"backend": "native"}, None, 'docker_image needs "backend": "docker"'),
        ({"backend": "native", "docker_image": None, "docker": {}}, None, 'docker needs "backend": "docker"'),
        ({"env": {"HF_TOKEN": "s3cret"}}, "env", "looks like a secret"),
    ],
)
def test_what_cannot_run_in_a_container_is_refused(change: dict[str, Any], param: str | None, words: str) -> None:
    with pytest.raises(InvalidRequest, match=words) as refused:
        admitted({**BOXED, **change})
    assert refused.value.param == param


@pytest.mark.parametrize(
    ("docker", "option", "words"),
    [
        ({"privileged": True}, "privileged", 'Unknown field "docker.privileged"; the fields are network, '),
        ({"network_mode": "host"}, "network_mode", 'field "docker.network_mode"; did you mean network?'),
        ({"network": "none"}, "network", "network none leaves the gateway no way to the engine; use host or bridge"),
        ({"network": "container:x"}, "network", '"host", "bridge" or the name of a network, not "container:x"'),
        ({"pull": "sometimes"}, "pull", '"missing", "always" or "never", not "sometimes"'),
        ({"entrypoint": "vllm serve"}, "entrypoint", 'a list of words, such as ["vllm", "serve"], not "vllm serve"'),
        ({"entrypoint": [1]}, "entrypoint", "a list of words"),
        ({"ipc": "shareable"}, "ipc", '"private" or "host", not "shareable"'),
        ({"shm_size": "8 GB"}, "shm_size", 'a size such as "512m" or "8g", not "8 GB"'),
        ({"shm_size": "0"}, "shm_size", 'not "0"'),
        ({"memory": 24}, "memory", 'a size such as "512m" or "8g", not 24'),
        ({"cpus": 0}, "cpus", "a number above 0 and at most 4096, not 0"),
        ({"cpus": 5000}, "cpus", "not 5000"),
        ({"ulimits": {"NOFILE": 1}}, "ulimits", 'of limits in lower case and whole numbers, such as {"memlock": -1}'),
        ({"ulimits": {"nofile": "1"}}, "ulimits", 'not "1"'),
        ({"mounts": ["data:/data"]}, "mounts", "'data:/data' must be /on/the/node:/in/the/container, with :ro or :rw"),
        ({"mounts": ["/data"]}, "mounts", "'/data' must be /on/the/node:/in/the/container"),
        ({"mounts": ["/data/../etc:/x"]}, "mounts", "must be /on/the/node:/in/the/container"),
        ({"mounts": ["/:/x"]}, "mounts", "must be /on/the/node:/in/the/container"),
        ({"mounts": ["/a:/b:rw,z"]}, "mounts", "must be /on/the/node:/in/the/container"),
        ({"mounts": ["/a:/b:rw:x"]}, "mounts", "must be /on/the/node:/in/the/container"),
        ({"mounts": "/a:/b"}, "mounts", 'a list, such as ["/data:/data:ro"], not "/a:/b"'),
        ({"user": "root; rm"}, "user", 'a user of the image, such as "1000:1000", not "root; rm"'),
        ({"user": "1000:"}, "user", 'not "1000:"'),
        ({"kv_events": "no"}, "kv_events", 'true or false, not "no"'),
    ],
)
def test_a_wrong_option_of_a_container_is_named_with_what_is_allowed(
    docker: dict[str, Any], option: str, words: str
) -> None:
    with pytest.raises(InvalidRequest) as refused:
        admitted({**BOXED, "docker": docker})
    assert words in str(refused.value)
    assert f"docker.{option}" in str(refused.value)
    assert refused.value.param == f"docker.{option}"


def test_options_of_containers_are_an_object() -> None:
    with pytest.raises(InvalidRequest, match=r"docker must be an object of network, .*, not \[\]"):
        admitted({**BOXED, "docker": []})
