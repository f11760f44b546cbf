"""How many tokens' keys and values fit beside the weights."""

from __future__ import annotations

import psutil
import torch

from deepinfer.engine_shim.engines.layer_shard.errors import LayerShardError, NoRoomForCache
from deepinfer.engine_shim.engines.layer_shard.options import Options
from deepinfer.engine_shim.engines.layer_shard.schedule import BLOCK, CHUNK_MULTIPLE, Limits
from deepinfer.engine_shim.engines.layer_shard.stage import Stage

GIB = 1 << 30
MOST_ON_A_CPU = 4 * GIB
SHARE_OF_FREE_MEMORY = 0.5
RESERVE_ON_A_GPU = GIB // 2  # activations, logits, cuBLAS


def limits_of(stage: Stage, options: Options) -> tuple[Limits, int]:
    """The schedule's limits, and the longest sequence accepted."""
    longest = options.max_model_len or stage.max_model_len
    if longest > stage.max_model_len:
        raise LayerShardError(f"max_model_len {longest} is more than the model's {stage.max_model_len}; lower it.")
    if options.max_num_batched_tokens < max(CHUNK_MULTIPLE, options.max_num_seqs):
        raise LayerShardError(
            f"max_num_batched_tokens {options.max_num_batched_tokens} must be at least {CHUNK_MULTIPLE} "
            f"and max_num_seqs ({options.max_num_seqs}); raise it."
        )
    useful = options.max_num_seqs * (longest + BLOCK)
    tokens = min(_kv_bytes(stage, options) // stage.kv_shape.bytes_per_token, useful) // BLOCK * BLOCK
    if tokens < BLOCK:
        raise NoRoomForCache("The weights leave no memory for keys and values; use a bigger device or a smaller model.")
    limits = Limits(options.max_num_seqs, options.max_num_batched_tokens, tokens)
    return limits, min(longest, tokens)


def _kv_bytes(stage: Stage, options: Options) -> int:
    if not stage.device.startswith("cuda"):
        return min(MOST_ON_A_CPU, int(psutil.virtual_memory().available * SHARE_OF_FREE_MEMORY))
    free, total = torch.cuda.mem_get_info(stage.device)
    others = total - free - torch.cuda.memory_reserved(stage.device)
    ours = int(total * options.gpu_memory_utilization) - stage.weight_bytes - RESERVE_ON_A_GPU
    return max(0, min(ours, total - others - stage.weight_bytes - RESERVE_ON_A_GPU))
