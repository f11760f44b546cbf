"""A model with rows as long as SmolLM2's that computes next to nothing: a hop takes there what its software takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers

LAYERS = 3
VOCABULARY = 256
PROMPT = list(range(32))


def save_small_model(folder: Path) -> None:
    config = transformers.LlamaConfig(
        hidden_size=576,
        intermediate_size=64,
        num_hidden_layers=LAYERS,
        num_attention_heads=9,
        num_key_value_heads=3,
        vocab_size=VOCABULARY,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        dtype=torch.bfloat16,
    )
    torch.manual_seed(0)
    model: Any = transformers.LlamaForCausalLM(config)
    model.to(torch.bfloat16).save_pretrained(folder)
