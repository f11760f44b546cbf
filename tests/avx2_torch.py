"""torch as it is on a CPU without bf16 instructions, whatever this machine has.

That is the path whose bits the layer-shard engine promises. With bf16 instructions oneDNN computes several rows
otherwise than one, so transformers' own answer depends on what else is in the batch.
"""

from __future__ import annotations

import os

ENV = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"}


def hold_this_process() -> None:
    """Call it before anything is computed. Other processes that the tests start, such as vLLM's, are left alone."""
    import torch

    before = {name: os.environ.get(name) for name in ENV}
    os.environ.update(ENV)
    one = torch.ones(2, 64, dtype=torch.bfloat16)
    torch.nn.functional.linear(one, one)  # both are read once, at the first use
    for name, value in before.items():
        if value is None:
            del os.environ[name]
        else:
            os.environ[name] = value
