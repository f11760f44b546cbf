"""The bf16 kernels have torch's bits, and are used only where they have."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm

from deepinfer.engine_shim.engines.layer_shard.kernels.decode_attention import decode_attention
from deepinfer.engine_shim.engines.layer_shard.kernels.exact_linear import ExactLinear
from deepinfer.engine_shim.engines.layer_shard.kernels.linears import use_linears
from deepinfer.engine_shim.engines.layer_shard.kernels.machine import Kernels, kernels_of_this_machine
from deepinfer.engine_shim.engines.layer_shard.kernels.norm import FusedNorm, use_norms
from deepinfer.engine_shim.engines.layer_shard.kv import KvShape, KvSlab


@pytest.fixture
def kernels() -> Kernels:
    kernels = kernels_of_this_machine()
    if kernels is None or not kernels.exact:
        pytest.skip("torch takes another path than AVX2's on this CPU, and the exact kernels stay unused")
    return kernels


def order_sensitive(*shape: int) -> torch.Tensor:
    return (torch.randn(*shape) * 2.0 ** torch.randint(-8, 9, shape)).bfloat16()


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("outputs", "inner"), [(64, 64), (193, 576), (3, 1536), (1, 64), (97, 2048), (64, 80)])
def test_every_row_count_gives_torchs_bits(outputs: int, inner: int, bias: bool, kernels: Kernels) -> None:
    torch.manual_seed(outputs)
    model = nn.Sequential(nn.Linear(inner, outputs, bias=bias, dtype=torch.bfloat16))
    torchs = model[0]
    torchs.weight.data = order_sensitive(outputs, inner)
    if bias:
        torchs.bias.data = order_sensitive(outputs)
    use_linears(model, kernels)
    with torch.inference_mode():
        for rows in (1, 2, 3, 4, 5, 6, 7, 8, 31, 32, 33, 34, 65, 100):
            x = order_sensitive(rows, inner)
            assert torch.equal(model(x), torchs(x)), rows


def test_the_kernel_is_used_where_torch_computes_bf16_dot_by_dot(kernels: Kernels) -> None:
    model = nn.Sequential(nn.Linear(576, 192, bias=False, dtype=torch.bfloat16), nn.Linear(64, 64))
    assert use_linears(model, kernels) == 1
    assert isinstance(model[0], ExactLinear)
    assert isinstance(model[1], nn.Linear)  # fp32 stays torch's


def test_numbers_that_are_none_stay_so(kernels: Kernels) -> None:
    model = nn.Sequential(nn.Linear(64, 64, bias=False, dtype=torch.bfloat16))
    torchs = model[0]
    use_linears(model, kernels)
    x = torch.ones(3, 64, dtype=torch.bfloat16)
    x[0, 0], x[1, 0] = torch.nan, torch.inf
    with torch.inference_mode():
        assert torch.equal(model(x).isnan(), torchs(x).isnan())
        assert torch.equal(model(x).isinf(), torchs(x).isinf())


@pytest.mark.parametrize("family", [LlamaRMSNorm, Qwen3RMSNorm])
@pytest.mark.parametrize("width", [32, 64, 544, 576, 1024, 4096, 8192, 80, 8224])
def test_every_norm_gives_the_models_bits(family: type[nn.Module], width: int, kernels: Kernels) -> None:
    torch.manual_seed(width)
    model = nn.Sequential(family(width, 1e-5).bfloat16())
    models = model[0]
    models.weight.data = order_sensitive(width)
    assert use_norms(model, kernels) == isinstance(model[0], FusedNorm) == (width <= 8192 and width % 32 == 0)
    with torch.inference_mode():
        for rows in (1, 2, 3, 33, 2048):
            x = order_sensitive(1, rows, width)
            assert torch.equal(model(x), models(x)), rows


@pytest.mark.parametrize(("heads", "groups", "size"), [(9, 3, 64), (4, 4, 80), (8, 1, 128), (2, 2, 16), (2, 1, 256)])
@pytest.mark.parametrize("window", [None, 24])
def test_decoding_many_sequences_at_once_gives_torchs_bits(
    heads: int, groups: int, size: int, window: int | None
) -> None:
    torch.manual_seed(heads)
    shape = KvShape(3, groups, size, torch.bfloat16, "cpu")
    decode = decode_attention(heads, shape)
    if decode is None:
        pytest.skip("torch computes this attention in another way on this CPU; the kernel stays unused")
    lengths = [1, 5, 8, 16, 33, 250, 512, 700, 1024, 1900]
    slabs = [KvSlab(shape, length + 3) for length in lengths]
    query = 3 * torch.randn(1, len(lengths), heads, size).bfloat16().transpose(1, 2)
    kept = [torch.randn(2, groups, length, size).bfloat16() for length in lengths]
    for slab, both in zip(slabs, kept, strict=True):
        slab.written(0, both.shape[2])[2].copy_(both)
        slab.written(both.shape[2] - 1, both.shape[2])[2].zero_()  # the kernel writes the newest
    key, value = (torch.stack([both[which, :, -1] for both in kept], dim=1)[None] for which in (0, 1))
    with torch.inference_mode():
        out = decode(2, (query, key, value), decode.held(list(zip(slabs, lengths, strict=True))), None, window)
        for number, (slab, both) in enumerate(zip(slabs, kept, strict=True)):
            assert torch.equal(torch.cat(slab.held(both.shape[2])[2]), both)
            keys, values = both[:, :, -window:] if window else both
            alone = scaled_dot_product_attention(query[:, :, number, None], keys[None], values[None], enable_gqa=True)
            assert torch.equal(out[number], alone[0, :, 0]), lengths[number]


def test_attention_that_is_not_bf16_stays_torchs() -> None:
    assert decode_attention(4, KvShape(1, 4, 64, torch.float32, "cpu")) is None
    assert decode_attention(4, KvShape(1, 4, 72, torch.bfloat16, "cpu")) is None
