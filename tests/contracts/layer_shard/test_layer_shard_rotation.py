"""RoPE by the kernel has the bits of every family's own function, and touches nothing but the model it was put into."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch
from torch import nn

from deepinfer.engine_shim.engines.layer_shard.kernels.machine import Kernels, compiled_kernels
from deepinfer.engine_shim.engines.layer_shard.kernels.rotation import NAME, Rotation, use_rotation

pytest.importorskip("llvmlite", reason="the kernels are compiled with it")
FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "phi", "phi3")


@pytest.fixture(scope="module")
def kernels() -> Kernels:
    kernels = compiled_kernels(packed=False)
    assert kernels is not None
    return kernels


def modeling(family: str) -> Any:
    return importlib.import_module(f"transformers.models.{family}.modeling_{family}")


def never(*unused: object) -> tuple[torch.Tensor, torch.Tensor]:
    raise AssertionError("the family's own function was called")


@pytest.mark.parametrize(("heads", "groups", "size"), [(9, 3, 64), (1, 1, 16), (4, 2, 80), (2, 1, 256)])
@pytest.mark.parametrize("family", FAMILIES)
def test_queries_and_keys_are_turned_to_the_familys_bits(
    family: str, heads: int, groups: int, size: int, kernels: Kernels
) -> None:
    torch.manual_seed(size)
    theirs = getattr(modeling(family), NAME)
    rotation = Rotation(theirs, kernels)
    for tokens in (1, 2, 7, 400):  # the last is worth several threads
        joined = torch.randn(1, tokens, (heads + 2 * groups) * size).bfloat16()
        shapes = (heads, groups, groups)
        query, key, value = (
            part.view(1, tokens, -1, size).transpose(1, 2)
            for part in torch.split(joined, [count * size for count in shapes], dim=-1)
        )
        tables = [torch.randn(1, tokens, size).bfloat16() for _ in range(2)]
        expected, kept = theirs(query, key, *tables), value.clone()
        for ours, their in zip(rotation(query, key, *tables), expected, strict=True):
            assert torch.equal(ours, their), tokens
        rotation._theirs = never  # it has been asked; from now on the kernel does it alone
        assert torch.equal(value, kept)


def test_part_of_a_head_is_turned_where_the_family_turns_a_part(kernels: Kernels) -> None:
    theirs = getattr(modeling("phi3"), NAME)
    query, key = torch.randn(1, 4, 5, 96).bfloat16(), torch.randn(1, 2, 5, 96).bfloat16()
    tables = [torch.randn(1, 5, 32).bfloat16() for _ in range(2)]
    expected = theirs(query, key, *tables)
    assert all(
        torch.equal(*pair) for pair in zip(Rotation(theirs, kernels)(query, key, *tables), expected, strict=True)
    )


@pytest.mark.parametrize(("dtype", "size"), [(torch.float32, 64), (torch.bfloat16, 24)])
def test_what_does_not_fit_is_left_to_the_family(dtype: torch.dtype, size: int, kernels: Kernels) -> None:
    theirs = getattr(modeling("llama"), NAME)
    query, key = torch.randn(1, 4, 5, size).to(dtype), torch.randn(1, 2, 5, size).to(dtype)
    tables = [torch.randn(1, 5, size).to(dtype) for _ in range(2)]
    expected = theirs(query, key, *tables)
    assert all(
        torch.equal(*pair) for pair in zip(Rotation(theirs, kernels)(query, key, *tables), expected, strict=True)
    )


def test_a_family_that_turns_otherwise_keeps_its_function(kernels: Kernels) -> None:
    def neighbours(query: torch.Tensor, key: torch.Tensor, *tables: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return query.roll(1, -1) * tables[0].unsqueeze(1), key.roll(1, -1) * tables[1].unsqueeze(1)

    query, key = torch.randn(1, 4, 5, 64).bfloat16(), torch.randn(1, 2, 5, 64).bfloat16()
    tables = [torch.randn(1, 5, 64).bfloat16() for _ in range(2)]
    expected = neighbours(query, key, *tables)
    turned = Rotation(neighbours, kernels)(query, key, *tables)
    assert all(torch.equal(*pair) for pair in zip(turned, expected, strict=True))


@pytest.mark.parametrize("family", FAMILIES)
def test_only_the_model_it_is_put_into_uses_it(family: str, kernels: Kernels) -> None:
    file = modeling(family)
    before = getattr(file, NAME)
    attention: type[nn.Module] = next(
        value for name, value in vars(file).items() if name.endswith("Attention") and hasattr(value, "forward")
    )
    layer = attention.__new__(attention)
    nn.Module.__init__(layer)
    forward = attention.forward
    use_rotation(nn.ModuleList([layer]), kernels)
    ours: Any = layer.forward
    assert isinstance(ours.__func__.__globals__[NAME], Rotation)
    assert getattr(file, NAME) is before
    assert attention.forward is forward
