"""Puts the kernels into a model of stock modules, wherever they are found to compute what the modules do."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from deepinfer.engine_shim.engines.layer_shard.kernels.gated_mlp import use_gated_mlps
from deepinfer.engine_shim.engines.layer_shard.kernels.linears import use_linears
from deepinfer.engine_shim.engines.layer_shard.kernels.machine import kernels_for
from deepinfer.engine_shim.engines.layer_shard.kernels.norm import use_norms
from deepinfer.engine_shim.engines.layer_shard.kernels.packed_linear import PackedEmbedding, PackedLinear
from deepinfer.engine_shim.engines.layer_shard.kernels.rotation import use_rotation


def use_kernels(model: Any, dtype: torch.dtype, device: str) -> None:
    """`model` is a causal LM of transformers, or some layers of one, with its weights."""
    available = kernels_for(dtype, device)
    if available is None:
        return
    tied = _is_tied(model)
    if not available.exact:
        use_gated_mlps(model, available)
    use_linears(model, available)
    if tied and isinstance(model.lm_head, PackedLinear):
        model.model.embed_tokens = PackedEmbedding(model.lm_head)
    if not available.exact:
        _let_go_of_files(model)
    use_norms(model, available)
    use_rotation(model, available)


def _is_tied(model: Any) -> bool:
    """Whether head and embedding are one tensor, held once."""
    head, embedding = model.lm_head, model.model.embed_tokens
    both = isinstance(head, nn.Linear) and isinstance(embedding, nn.Embedding)
    return both and head.weight is embedding.weight


def _let_go_of_files(model: nn.Module) -> None:
    """Weights are pages of mapped files: what was not packed is copied, so that what was is not held a second time."""
    for module in model.modules():
        if not isinstance(module, PackedLinear | PackedEmbedding):
            for parameter in module.parameters(recurse=False):
                parameter.data = parameter.data.clone()
