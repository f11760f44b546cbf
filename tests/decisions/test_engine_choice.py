"""Which installed engine runs a replica where: values in, an engine or a sentence out."""

from __future__ import annotations

import re
from importlib.resources import files
from typing import Any

import pytest
from packaging.specifiers import SpecifierSet

from deepinfer.control_plane.scheduler.fit import NoFit, devices_for, still_fits
from deepinfer.engine_environments.choice import NoEngine, chosen_engine, refusing_line
from deepinfer.engine_environments.compatibility import compatibility, lines
from deepinfer.fleet.resources import Device, InstalledEngine, Node
from deepinfer.fleet.spec import DeploymentSpec
from tests.fleet_values import installed

CPU = Device(id="cpu", kind="cpu", name="CPU", memory_bytes=1)
OLD, NEW = installed("vllm", "0.10.2", "cuda"), installed("vllm", "0.32.0", "cuda")
EARLIER, ON_CPU = installed("vllm", "0.31.0", "cpu"), installed("vllm", "0.32.0", "cpu")
MISSING = 'engine "vllm" is not installed there'
RUN = "run `deepinfer engine install vllm"


def gpu(capability: str | None = "9.0", index: int = 0) -> Device:
    return Device(id=f"cuda:{index}", kind="cuda", name="GPU", memory_bytes=1, compute_capability=capability)


def spec(**fields: Any) -> DeploymentSpec:
    return DeploymentSpec.model_validate({"model": "m", "engine": "vllm", **fields})


def node(*devices: Device, engines: tuple[InstalledEngine, ...]) -> Node:
    return Node(name="a", instance="i", agent_endpoint="127.0.0.1:1", devices=devices, engines=engines, version="0")


@pytest.mark.parametrize(
    ("fields", "there", "device", "expected"),
    [
        ({}, (ON_CPU,), CPU, ON_CPU),
        ({}, (ON_CPU, NEW), gpu(), NEW),
        ({}, (installed("vllm", "0.9.0", "cpu"), EARLIER, ON_CPU), CPU, ON_CPU),
        ({"engine_version": "0.31.0"}, (EARLIER, ON_CPU), CPU, EARLIER),
        ({}, (OLD, NEW), gpu("12.0"), NEW),
        ({}, (installed("vllm", "0.20.0", "cuda"), NEW), gpu("7.0"), installed("vllm", "0.20.0", "cuda")),
        ({"dtype": "bfloat16"}, (NEW,), gpu("8.0"), NEW),
        ({"dtype": "float16"}, (NEW,), gpu("7.5"), NEW),
        ({"quantization": "fp8"}, (NEW,), gpu("8.9"), NEW),
        ({"quantization": "fp8"}, (ON_CPU,), CPU, ON_CPU),
        ({"quantization": "fp8"}, (NEW,), gpu(None), NEW),
        ({"engine": "sim"}, (installed(),), gpu("7.0"), installed()),
    ],
)  # fmt: skip
def test_the_newest_engine_that_fits_is_chosen(
    fields: dict[str, Any], there: tuple[InstalledEngine, ...], device: Device, expected: InstalledEngine
) -> None:
    assert chosen_engine(spec(**fields), there, (device,), lines()) == expected


@pytest.mark.parametrize(
    ("fields", "there", "device", "words"),
    [
        ({}, (OLD,), gpu("12.0"), "Blackwell (SM 12.0) needs vLLM 0.11.0 or newer"),
        ({}, (OLD,), gpu("9.0"), "deepinfer runs vLLM from 0.11.0 on"),
        ({}, (NEW,), gpu("6.1"), "compute capability 7.0"),
        ({}, (NEW,), gpu("7.0"), "7.5 (T4) or higher since 0.21.0"),
        ({"dtype": "bfloat16"}, (NEW,), gpu("7.5"), "bfloat16 needs compute capability 8.0"),
        ({"quantization": "mxfp4"}, (NEW,), gpu("7.5"), "this quantization needs compute capability 8.0"),
        ({"quantization": "fp8"}, (installed("vllm", "0.14.1", "cpu"),), CPU, "no kernels for this quantization"),
    ],
)  # fmt: skip
def test_a_refusal_quotes_the_line_that_refused(
    fields: dict[str, Any], there: tuple[InstalledEngine, ...], device: Device, words: str
) -> None:
    refusal = chosen_engine(spec(**fields), there, (device,), lines())
    assert isinstance(refusal, NoEngine) and refusal.refused_by_rule and words in refusal.reason
    quoted = re.search(r"engine_compatibility\.toml line (\d+): (\{.*\})\)", refusal.reason)
    assert quoted is not None
    text = (files("deepinfer") / "configs" / "engine_compatibility.toml").read_text()
    assert text.splitlines()[int(quoted[1]) - 1].strip() == f"{quoted[2]},"


@pytest.mark.parametrize(
    ("fields", "devices", "there", "sentence"),
    [
        ({}, (CPU,), (), f"{MISSING}; {RUN} --cpu` on that node"),
        ({}, (CPU, gpu()), (), f"{MISSING}; {RUN}` on that node"),
        ({"device": "cpu"}, (CPU, gpu()), (), f"{MISSING}; {RUN} --cpu` on that node"),
        (
            {"device": "0"}, (CPU, gpu()), (ON_CPU,),
            f"{MISSING} for cuda (there is 0.32.0 for cpu); {RUN}` on that node",
        ),
        (
            {"engine_version": "0.31.0"}, (CPU,), (ON_CPU,),
            'engine "vllm" 0.31.0 is not installed there for cpu (there is 0.32.0 for cpu); '
            f"{RUN} --cpu --version 0.31.0` on that node",
        ),
        (
            {"engine": "layer-shard"}, (CPU,), (installed(), ON_CPU),
            'engine "layer-shard" is not installed there (installed: sim, vllm)',
        ),
    ],
)  # fmt: skip
def test_what_is_not_installed_is_refused_with_the_command_that_helps(
    fields: dict[str, Any], devices: tuple[Device, ...], there: tuple[InstalledEngine, ...], sentence: str
) -> None:
    assert devices_for(spec(**fields), node(*devices, engines=there), {}) == NoFit(sentence)


@pytest.mark.parametrize(
    ("fields", "devices", "there", "expected"),
    [
        ({}, (CPU, gpu()), (ON_CPU,), ("cpu",)),  # a GPU that no installed engine can use is left alone
        ({}, (CPU, gpu()), (ON_CPU, NEW), ("cuda:0",)),
        ({}, (CPU, gpu("6.1", 0), gpu("8.0", 1)), (NEW,), ("cuda:1",)),
        (
            {"dtype": "bfloat16", "tensor_parallel_size": 2},
            (gpu("7.5", 0), gpu("8.0", 1), gpu("9.0", 2)), (NEW,), ("cuda:1", "cuda:2"),
        ),
        ({"device": "0,1"}, (CPU, gpu("9.0", 0), gpu("9.0", 1)), (NEW,), ("cuda:0", "cuda:1")),
        ({"engine_args": {"pipeline_parallel_size": 2}}, (gpu("9.0", 0), gpu("9.0", 1)), (NEW,), ("cuda:0", "cuda:1")),
    ],
)  # fmt: skip
def test_devices_suit_the_engine(
    fields: dict[str, Any], devices: tuple[Device, ...], there: tuple[InstalledEngine, ...], expected: tuple[str, ...]
) -> None:
    there_is = node(*devices, engines=there)
    assert devices_for(spec(**fields), there_is, {}) == expected
    assert still_fits(spec(**fields), there_is, expected)
    assert not still_fits(spec(**fields), there_is.model_copy(update={"engines": (OLD,)}), expected)


def test_two_devices_that_need_two_versions_are_no_place() -> None:
    volta, blackwell = gpu("7.0", 0), gpu("12.0", 1)
    there = node(volta, blackwell, engines=(installed("vllm", "0.10.2", "cuda"), NEW))
    verdict = devices_for(spec(tensor_parallel_size=2), there, {})
    assert isinstance(verdict, NoFit) and "7.5 (T4) or higher" in verdict.reason


def test_every_rule_can_refuse_and_is_well_formed() -> None:
    assert len(lines()) == len(compatibility().rules) > 5
    for line in lines():
        SpecifierSet(line.rule.versions)
        SpecifierSet(line.rule.capability)
        assert any((line.rule.versions, line.rule.capability, line.rule.accelerator)), line.text


def test_every_recipe_installs_a_version_that_no_line_refuses() -> None:
    for kind, recipes in compatibility().install.items():
        for accelerator, recipe in recipes.items():
            assert refusing_line(installed(kind, recipe.version, accelerator), lines()) is None
    assert refusing_line(OLD, lines()) is not None
