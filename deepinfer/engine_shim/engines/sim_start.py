"""From arguments to a running simulated engine and the tokenizer it makes words with."""

from __future__ import annotations

import asyncio
from pathlib import Path

from deepinfer.engine_shim.engine_args import SimArgs
from deepinfer.engine_shim.engines.sim import SimEngine
from deepinfer.engine_shim.engines.sim_core import SimCore
from deepinfer.engine_shim.loading_thread import in_thread
from deepinfer.engine_shim.text.byte_tokenizer import ByteTokenizer
from deepinfer.engine_shim.text.model_tokenizer import ModelTokenizer
from deepinfer.engine_shim.text.tokenizer import Tokenizer


async def started(
    name: str, folder: Path | None, args: SimArgs, max_model_len: int | None, locks: tuple[Path, ...] = ()
) -> tuple[SimEngine, Tokenizer]:
    """Without a folder its tokens are bytes. `locks` are the simulated devices that it holds as long as it lives."""
    await asyncio.sleep(args.load_seconds)
    tokenizer: Tokenizer = ByteTokenizer()
    if folder is not None:
        tokenizer = await in_thread(lambda: ModelTokenizer(folder))
    core = None
    if args.core_process or args.memory_bytes or locks:
        core = await SimCore.started(args.memory_bytes, locks)
    return SimEngine(name, tokenizer, args, max_model_len, core), tokenizer
