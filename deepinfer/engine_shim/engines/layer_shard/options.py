"""What an operator can say about a layer-shard engine. Names and meanings are vLLM's where it has them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Options:
    """The defaults serve any supported model on the CPU."""

    device: str = "cpu"  # or "cuda:0"
    dtype: str = "auto"  # what the folder stores
    max_model_len: int | None = None  # tokens, prompt and answer; None: the model's own limit
    gpu_memory_utilization: float = 0.9
    max_num_seqs: int = 64
    max_num_batched_tokens: int = 2048  # a prompt up to this long is computed in one piece
    seed: int = 0
    threads: int | None = None  # on a CPU; None: one for each core
    served_name: str | None = None
    layers: range | None = None  # None: all
    end_token_ids: tuple[int, ...] = ()  # of a pipeline's head, which may not have read the folder's
