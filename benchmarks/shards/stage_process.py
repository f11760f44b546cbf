"""A stage in a process of its own, without a control plane: prints where it listens, ends when stdin does.

python -m benchmarks.shards.stage_process FOLDER NAME THREADS
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from benchmarks.shards.agreed import KV_TOKENS, LONGEST_STEP, SECRET
from deepinfer.engine_shim.engines.layer_shard.pipeline.hosting import Capacity, Hosting
from deepinfer.engine_shim.engines.layer_shard.pipeline.served_stage import ServedStage
from deepinfer.engine_shim.engines.layer_shard.stage import Source, Stage, build_stage


def main(folder: Path, name: str, threads: int) -> None:
    torch.set_num_threads(threads)

    def build(layers: range) -> tuple[Stage, Capacity]:
        return build_stage(Source(folder, layers)), Capacity(KV_TOKENS, LONGEST_STEP)

    stage = ServedStage(("127.0.0.1", 0), SECRET, name, Hosting(build, threads))
    print(stage.endpoint, flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
