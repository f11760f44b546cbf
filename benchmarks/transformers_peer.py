"""The peer: transformers' own `generate` in a process of its own, told on stdin what to decode, as JSON lines.

Takes {"prompts": [[id, …], …], "new_tokens": N}; answers {"seconds": s, "tokens": [[id, …], …]}.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import torch
from transformers import AutoModelForCausalLM


def main(model_path: str) -> None:
    model: Any = AutoModelForCausalLM.from_pretrained(model_path)  # from_pretrained leaves it in eval mode
    print(json.dumps({"dtype": str(model.dtype), "threads": torch.get_num_threads()}), flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        prompts = torch.tensor(order["prompts"])
        new = order["new_tokens"]
        started = time.perf_counter()
        with torch.inference_mode():
            out = model.generate(
                prompts,
                attention_mask=torch.ones_like(prompts),
                do_sample=False,
                min_new_tokens=new,
                max_new_tokens=new,
                pad_token_id=0,
            )
        seconds = time.perf_counter() - started
        print(json.dumps({"seconds": seconds, "tokens": out[:, prompts.shape[1] :].tolist()}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
