"""The bf16 kernel has torch's bits, and is used only where it has."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from deepinfer.engine_shim.engines.layer_shard.exact_linear import ExactLinear, make_linears_exact

AVX2 = torch.backends.cpu.get_cpu_capability() == "AVX2"


def order_sensitive(*shape: int) -> torch.Tensor:
    return (torch.randn(*shape) * 2.0 ** torch.randint(-8, 9, shape)).bfloat16()


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("outputs", "inner"), [(64, 64), (193, 576), (3, 1536), (1, 64), (97, 2048), (64, 80)])
def test_every_row_count_gives_torchs_bits(outputs: int, inner: int, bias: bool) -> None:
    torch.manual_seed(outputs)
    model = nn.Sequential(nn.Linear(inner, outputs, bias=bias, dtype=torch.bfloat16))
    torchs = model[0]
    torchs.weight.data = order_sensitive(outputs, inner)
    if bias:
        torchs.bias.data = order_sensitive(outputs)
    make_linears_exact(model)
    with torch.inference_mode():
        for rows in (1, 2, 3, 4, 5, 6, 7, 8, 31, 32, 33, 34, 65, 100):
            x = order_sensitive(rows, inner)
            assert torch.equal(model(x), torchs(x)), rows


@pytest.mark.skipif(not AVX2, reason="torch takes another path on this CPU, and the kernel stays unused")
def test_the_kernel_is_used_where_torch_computes_bf16_dot_by_dot() -> None:
    pytest.importorskip("llvmlite")
    model = nn.Sequential(nn.Linear(576, 192, bias=False, dtype=torch.bfloat16), nn.Linear(64, 64))
    assert make_linears_exact(model) == 1
    assert isinstance(model[0], ExactLinear)
    assert isinstance(model[1], nn.Linear)  # fp32 stays torch's


@pytest.mark.skipif(not AVX2, reason="the kernel is unused on this CPU")
def test_numbers_that_are_none_stay_so() -> None:
    pytest.importorskip("llvmlite")
    model = nn.Sequential(nn.Linear(64, 64, bias=False, dtype=torch.bfloat16))
    torchs = model[0]
    make_linears_exact(model)
    x = torch.ones(3, 64, dtype=torch.bfloat16)
    x[0, 0], x[1, 0] = torch.nan, torch.inf
    with torch.inference_mode():
        assert torch.equal(model(x).isnan(), torchs(x).isnan())
        assert torch.equal(model(x).isinf(), torchs(x).isinf())
