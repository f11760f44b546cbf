"""What heads and stages of these benchmarks agree on."""

from __future__ import annotations

from typing import Final

from deepinfer.engine_shim.engines.layer_shard.pipeline.handshake import Secret

SECRET: Final = Secret(b"of no worth: all of it is on loopback")
SEQUENCES: Final = 64
LONGEST_STEP: Final = 2048
KV_TOKENS: Final = SEQUENCES * 2048
