"""The packed kernels: bits of their own, which are a row's alone and in any batch, and close to torch's."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import accumulate
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import linear, scaled_dot_product_attention, silu

from deepinfer.engine_shim.engines.layer_shard.attention import Segment
from deepinfer.engine_shim.engines.layer_shard.kernels import machine
from deepinfer.engine_shim.engines.layer_shard.kernels.decode_attention import decode_attention
from deepinfer.engine_shim.engines.layer_shard.kernels.gated_mlp import GatedMlp
from deepinfer.engine_shim.engines.layer_shard.kernels.machine import Kernels, compiled_kernels
from deepinfer.engine_shim.engines.layer_shard.kernels.packed_linear import PackedEmbedding, PackedLinear, packs_well
from deepinfer.engine_shim.engines.layer_shard.kernels.probe import close, order_sensitive
from deepinfer.engine_shim.engines.layer_shard.kv import KvShape, KvSlab
from deepinfer.engine_shim.engines.layer_shard.stage import Source, Stage, build_stage
from tests.contracts.layer_shard.conftest import NATIVE

pytest.importorskip("llvmlite", reason="the kernels are compiled with it")
NEEDS = {"AVX2": "avx2", "AVX512": "avx512bw", "AVX512_BF16": "avx512bf16"}
ROWS = (1, 2, 3, 5, 12, 13, 23, 192, 193, 400)
CUTS = (range(2), range(2, 5), range(5, 7))


def made_for(make: str) -> Kernels:
    from llvmlite import binding  # type: ignore[import-untyped]

    from deepinfer.engine_shim.engines.layer_shard.kernels import packed_linear_kernel

    if not binding.get_host_cpu_features().get(NEEDS[make]):
        pytest.skip(f"this CPU has no {NEEDS[make]}, whose instructions these kernels use")
    kernels = compiled_kernels(packed=True, shape=getattr(packed_linear_kernel, make))
    assert kernels is not None
    return kernels


@pytest.fixture(scope="module", params=list(NEEDS))
def kernels(request: pytest.FixtureRequest) -> Kernels:
    """Of every make that this CPU can run."""
    return made_for(request.param)


@pytest.fixture(scope="module")
def best_kernels() -> Kernels:
    kernels = compiled_kernels(packed=True)
    assert kernels is not None
    return kernels


@pytest.fixture(params=[1, 3])
def threads(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """Also where a product is so small that it would not be shared."""
    before = torch.get_num_threads()
    monkeypatch.setattr(machine, "WORTH_WAKING_THREADS", 1)
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.fixture
def random() -> torch.Generator:
    return torch.Generator().manual_seed(7)


@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize(("outputs", "inner"), [(64, 64), (194, 576), (2, 6), (34, 4100)])
def test_a_row_has_its_bits_alone_and_among_any_number(
    outputs: int, inner: int, gated: bool, threads: int, kernels: Kernels, random: torch.Generator
) -> None:
    weight, bias = order_sensitive(random, outputs, inner), order_sensitive(random, outputs)
    x = order_sensitive(random, max(ROWS), inner)
    layer = PackedLinear(weight, bias, kernels, gated)
    alone = torch.cat([layer(row[None]) for row in x[:33]])
    whole = layer(x)
    assert torch.equal(alone, whole[:33])
    for rows in ROWS:
        assert torch.equal(layer(x[:rows]), whole[:rows]), rows
        assert torch.equal(layer(x[-rows:]), whole[-rows:]), rows


@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize(("outputs", "inner"), [(64, 64), (193, 576), (1, 2), (33, 4100)])
def test_answers_are_those_of_fp32_but_for_a_rounding(
    outputs: int, inner: int, biased: bool, threads: int, kernels: Kernels, random: torch.Generator
) -> None:
    weight = torch.randn(outputs, inner, generator=random).bfloat16()
    bias = torch.randn(outputs, generator=random).bfloat16() if biased else None
    x = torch.randn(3, 41, inner, generator=random).bfloat16()
    exactly = linear(x.float(), weight.float(), None if bias is None else bias.float())
    assert close(PackedLinear(weight, bias, kernels)(x), exactly)


def test_a_gate_is_silu_of_one_half_times_the_other(kernels: Kernels, random: torch.Generator) -> None:
    weight = torch.randn(2 * 75, 64, generator=random).bfloat16()
    x = 4 * torch.randn(9, 64, generator=random).bfloat16()  # gates from -100 to 100
    gate, up = linear(x.float(), weight.float()).chunk(2, dim=-1)
    assert close(PackedLinear(weight, None, kernels, gated=True)(x), silu(gate) * up)


def test_numbers_that_are_none_stay_so(kernels: Kernels) -> None:
    layer = PackedLinear(torch.ones(40, 64).bfloat16(), None, kernels)
    x = torch.ones(3, 64).bfloat16()
    x[0, 0], x[1, 0] = torch.nan, torch.inf
    assert layer(x)[0].isnan().all()
    assert layer(x)[1].isinf().all()
    assert torch.equal(layer(x)[2], torch.full((40,), 64).bfloat16())


def test_no_rows_are_no_answer(kernels: Kernels) -> None:
    assert PackedLinear(torch.ones(40, 64).bfloat16(), None, kernels)(torch.ones(0, 64).bfloat16()).shape == (0, 40)


def test_an_odd_width_is_left_to_torch(kernels: Kernels) -> None:
    assert packs_well(64, kernels)
    assert not packs_well(63, kernels)


def test_an_embedding_is_read_out_of_the_packed_head(kernels: Kernels, random: torch.Generator) -> None:
    weight = torch.randn(257, 64, generator=random).bfloat16()
    ids = torch.randint(257, (1, 99), generator=random)
    assert torch.equal(PackedEmbedding(PackedLinear(weight, None, kernels))(ids), weight[ids])


@pytest.mark.parametrize(("heads", "groups", "size"), [(9, 3, 64), (4, 4, 80), (8, 1, 128), (2, 2, 16), (2, 1, 256)])
@pytest.mark.parametrize("window", [None, 24])
def test_a_token_attends_alone_as_in_any_batch(
    heads: int, groups: int, size: int, window: int | None, kernels: Kernels, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(heads)
    monkeypatch.setattr(machine, "kernels_of_this_machine", lambda: kernels)
    decode = decode_attention(heads, shape := KvShape(3, groups, size, torch.bfloat16, "cpu"))
    assert decode is not None
    lengths = [1, 5, 8, 16, 33, 250, 512, 700, 1024, 1900]
    slabs = [KvSlab(shape, length + 3) for length in lengths]
    query = 3 * torch.randn(1, len(lengths), heads, size).bfloat16().transpose(1, 2)
    kept = [torch.randn(2, groups, length, size).bfloat16() for length in lengths]
    for slab, both in zip(slabs, kept, strict=True):
        slab.written(0, both.shape[2])[2].copy_(both)
        slab.written(both.shape[2] - 1, both.shape[2])[2].zero_()  # the kernel writes the newest
    key, value = (torch.stack([both[which, :, -1] for both in kept], dim=1)[None] for which in (0, 1))
    out = decode(2, (query, key, value), decode.held(list(zip(slabs, lengths, strict=True))), None, window)
    for number, (slab, both) in enumerate(zip(slabs, kept, strict=True)):
        assert torch.equal(torch.cat(slab.held(both.shape[2])[2]), both)
        one = slice(number, number + 1)
        fresh = (query[:, :, one], key[:, :, one], value[:, :, one])
        alone = decode(2, fresh, decode.held([(slab, lengths[number])]), None, window)
        assert torch.equal(out[number], alone[0]), lengths[number]
        keys, values = (both[:, :, -window:] if window else both).float()
        exactly = scaled_dot_product_attention(fresh[0].float(), keys[None], values[None], enable_gqa=True)
        assert close(out[number], exactly[0, :, 0]), lengths[number]


@pytest.fixture
def stage_of(
    tiny_model: Callable[..., Path], best_kernels: Kernels, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Stage]:
    """`stage_of(family, layers=None)`: on the best packed kernels, even where this machine would take others."""
    monkeypatch.setattr(machine, "kernels_of_this_machine", lambda: best_kernels)

    def stage(family: str, layers: range | None = None) -> Stage:
        return build_stage(Source(tiny_model(family, torch.bfloat16), layers))

    return stage


def logits_of(stages: list[Stage], prompts: list[list[int]], begins: list[int]) -> list[list[torch.Tensor]]:
    """Of each prompt's end and four tokens after it; prompt number `i` joins the others in step `begins[i]`."""
    slabs = [[KvSlab(stage.kv_shape, 64) for stage in stages] for _ in prompts]
    given, starts = [list(prompt) for prompt in prompts], [0] * len(prompts)
    answers: list[list[torch.Tensor]] = [[] for _ in prompts]
    for step in range(max(begins) + 5):
        active = [i for i, begin in enumerate(begins) if begin <= step < begin + 5]
        active.sort(key=lambda i: len(given[i]) > 1)
        places = [torch.arange(starts[i], starts[i] + len(given[i])) for i in active]
        passed = torch.tensor([token for i in active for token in given[i]])
        for number, stage in enumerate(stages):
            segments = [Segment(slabs[i][number], starts[i], len(given[i])) for i in active]
            passed = stage.forward(passed, torch.cat(places), segments)
        ends = [end - 1 for end in accumulate(len(given[i]) for i in active)]
        for i, row in zip(active, stages[-1].logits(passed[ends]), strict=True):
            answers[i].append(row.clone())
            starts[i] += len(given[i])
            given[i] = [int(row.argmax())]
    return answers


def equal(left: list[torch.Tensor], right: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


def test_every_family_answers_alone_as_in_any_batch(
    family: str, stage_of: Callable[..., Stage], random: torch.Generator
) -> None:
    stages = [stage_of(family)]
    prompts = [torch.randint(3, 257, (n,), generator=random).tolist() for n in (5, 17, 1, 9, 33, 2, 3, 28, 7, 1, 31, 4)]
    alone = [logits_of(stages, [prompt], [0])[0] for prompt in prompts]
    for count, pause in ((2, 0), (3, 1), (12, 0), (12, 1)):
        together = logits_of(stages, prompts[:count], [pause * i for i in range(count)])
        for number in range(count):
            assert equal(together[number], alone[number]), (count, pause, number)


def test_every_family_computes_again_the_very_rows_it_computed_one_by_one(
    family: str, stage_of: Callable[..., Stage], random: torch.Generator
) -> None:
    """What a lost stage held is filled in by one step of single tokens that see each other."""
    stage = stage_of(family, CUTS[0])
    tokens = torch.randint(3, 257, (21,), generator=random)
    before, anew = KvSlab(stage.kv_shape, 32), KvSlab(stage.kv_shape, 32)
    rows = [stage.forward(tokens[:9], torch.arange(9), [Segment(before, 0, 9)])]
    for at in range(9, 21):
        rows.append(stage.forward(tokens[at : at + 1], torch.tensor([at]), [Segment(before, at, 1)]))
    singles = [Segment(anew, at, 1, again=True) for at in range(9, 21)]
    order = torch.cat((torch.arange(9, 21), torch.arange(9)))
    filled = stage.forward(tokens[order], order, [*singles, Segment(anew, 0, 9)])
    assert torch.equal(filled, torch.cat(rows)[order])


def test_stages_compute_the_very_bits_of_the_whole(
    family: str, stage_of: Callable[..., Stage], prompts: list[list[int]]
) -> None:
    cut = [stage_of(family, layers) for layers in CUTS]
    begins = [0, 1, 1, 2, 3]
    for whole, parts in zip(
        logits_of([stage_of(family)], prompts, begins), logits_of(cut, prompts, begins), strict=True
    ):
        assert equal(whole, parts)


def test_every_family_is_close_to_transformers_in_fp32(
    family: str, stage_of: Callable[..., Stage], tiny_model: Callable[..., Path], prompts: list[list[int]]
) -> None:
    import transformers

    ours = logits_of([stage_of(family)], [prompts[4]], [0])[0][0].float()
    folder = tiny_model(family, torch.bfloat16)
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.inference_mode():
        exactly = model(torch.tensor([prompts[4]])).logits[0, -1]
        theirs = model.bfloat16()(torch.tensor([prompts[4]])).logits[0, -1].float()
    assert (ours - exactly).norm() <= 1.5 * (theirs - exactly).norm()


def test_the_kernels_are_used_and_a_tied_head_is_held_once(stage_of: Callable[..., Stage]) -> None:
    stage = stage_of("llama-tied")
    modules = list(stage._base.modules())  # type: ignore[attr-defined]
    kinds = {type(module) for module in modules}
    assert {GatedMlp, PackedEmbedding, PackedLinear} <= kinds
    assert not kinds & {nn.Linear, nn.Embedding}
    untied = stage_of("llama")
    head = untied._head
    assert isinstance(head, PackedLinear)
    assert untied.weight_bytes - stage.weight_bytes == 257 * 64 * 2


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells what a process has mapped")
def test_the_files_whose_weights_were_packed_are_let_go(
    stage_of: Callable[..., Stage], tiny_model: Callable[..., Path]
) -> None:
    stage = stage_of("qwen2")
    assert stage.weight_bytes
    assert str(tiny_model("qwen2", torch.bfloat16)) not in Path("/proc/self/maps").read_text()


@pytest.mark.skipif(
    NATIVE not in os.environ, reason="the process is held to AVX2, where the kernels are the exact ones"
)
def test_every_family_gets_packed_kernels_where_torch_has_avx512() -> None:
    if not torch.backends.cpu.get_cpu_capability().startswith("AVX512"):
        pytest.skip("torch does not use AVX-512 on this CPU")
    kernels = machine.kernels_of_this_machine()
    assert kernels is not None
    assert not kernels.exact
    assert kernels.group == 32


@pytest.mark.skipif(NATIVE in os.environ, reason="this is the child")
def test_all_of_it_holds_where_torch_uses_all_of_this_cpu() -> None:
    """torch reads once a process what it may use, and this one is held to AVX2."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "every_family", __file__]
    done = subprocess.run(command, env={**os.environ, NATIVE: "1"}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:]
