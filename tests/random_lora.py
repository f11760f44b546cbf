"""A LoRA adapter of random numbers for SmolLM2-135M: strong enough to change what it says, and always the same."""

from __future__ import annotations

import json
from pathlib import Path

import numpy
from safetensors.numpy import save_file

LAYERS, HIDDEN, RANK = 30, 576, 8


def make_lora(folder: Path) -> Path:
    folder.mkdir()
    random = numpy.random.default_rng(7)
    weights = {}
    for layer in range(LAYERS):
        name = f"base_model.model.model.layers.{layer}.self_attn.o_proj"
        weights[f"{name}.lora_A.weight"] = random.normal(0, 0.05, (RANK, HIDDEN)).astype(numpy.float32)
        weights[f"{name}.lora_B.weight"] = random.normal(0, 0.1, (HIDDEN, RANK)).astype(numpy.float32)
    save_file(weights, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": RANK, "lora_alpha": 16, "target_modules": ["o_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps({**config, "bias": "none"}))
    return folder
