"""What the layer-shard engine serves, for who must know without its libraries: the planner needs no torch."""

from __future__ import annotations

ARCHITECTURES = (
    "LlamaForCausalLM",
    "MistralForCausalLM",
    "Qwen2ForCausalLM",
    "Qwen3ForCausalLM",
    "PhiForCausalLM",
    "Phi3ForCausalLM",
)
DTYPE_BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}
