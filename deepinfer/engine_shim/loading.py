"""From a launch to a running engine. Heavy libraries are imported here, by the function that needs them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from deepinfer.engine_shim.engine_args import sim_args
from deepinfer.engine_shim.loading_thread import in_thread
from deepinfer.engine_shim.openai_app.app import openai_app
from deepinfer.engine_shim.pipeline_door import PipelineDoor
from deepinfer.engine_shim.served_engine import ServedEngine
from deepinfer.engine_shim.text.model_tokenizer import ModelTokenizer
from deepinfer.engine_shim.text.tokenizer import Tokenizer
from deepinfer.engine_shim.text_generation import TextGenerator
from deepinfer.engine_shim.token_engine import TokenEngine
from deepinfer.engine_shim.typed_generation import typed_deltas
from deepinfer.fleet.errors import EngineWillNotStart
from deepinfer.fleet.launch import EngineLaunch
from deepinfer.fleet.spec import EngineKind

Progress = Callable[[str], None]


async def loaded(launch: EngineLaunch, progress: Progress, pipeline: PipelineDoor | None = None) -> ServedEngine:
    """Raises `EngineWillNotStart` or `InvalidRequest` when trying again will not help.

    `pipeline`: where a replica in stages hears of its layout.
    """
    if launch.container is not None:
        from deepinfer.engine_shim.engines.container.engine import load_container

        return await load_container(launch, launch.container, progress)
    match launch.engine:
        case EngineKind.SIM:
            return await _sim(launch, progress)
        case EngineKind.LAYER_SHARD:
            return await _layer_shard(launch, progress, pipeline)
        case EngineKind.VLLM:
            return await _vllm(launch, progress)


async def _sim(launch: EngineLaunch, progress: Progress) -> ServedEngine:
    from deepinfer.engine_shim.engines.sim_start import started

    args = sim_args(launch.engine_args)
    progress("simulating the loading of a model")
    name, locks = launch.served_names[0], launch.device_locks
    engine, tokenizer = await started(name, launch.model_path, args, launch.max_model_len, locks)
    return _served(engine, tokenizer, launch)


async def _layer_shard(launch: EngineLaunch, progress: Progress, pipeline: PipelineDoor | None) -> ServedEngine:
    folder = _folder(launch)
    if launch.tensor_parallel_size not in (None, 1):
        raise EngineWillNotStart("The layer-shard engine has no tensor parallelism; leave tensor_parallel_size out.")
    progress("importing torch")
    tokenizer = await in_thread(lambda: ModelTokenizer(folder))  # first: it is quick to refuse
    try:
        start = await in_thread(_layer_shard_start)
    except ModuleNotFoundError as error:
        missing = f"The layer-shard engine needs {error.name}; install deepinfer[layer-shard] on this node."
        raise EngineWillNotStart(missing) from error
    return _served(await start(launch, folder, progress, pipeline), tokenizer, launch)


def _layer_shard_start() -> Any:
    from deepinfer.engine_shim.engines.layer_shard.start import started

    return started


async def _vllm(launch: EngineLaunch, progress: Progress) -> ServedEngine:
    from deepinfer.engine_shim.engines.vllm.engine import load_vllm

    return await load_vllm(launch, progress)


def _folder(launch: EngineLaunch) -> Path:
    if launch.model_path is None:
        raise EngineWillNotStart(f"The {launch.engine} engine needs a model folder, and the launch names none.")
    return launch.model_path


def _served(engine: TokenEngine, tokenizer: Tokenizer, launch: EngineLaunch) -> ServedEngine:
    generator = TextGenerator(engine, tokenizer)
    app = openai_app(generator, launch.served_names)
    return ServedEngine(
        info=lambda: engine.info,
        app=app,
        generate=partial(typed_deltas, generator),
        kv=engine.kv,
        load=engine.load,
        close=engine.close,
        work_done=engine.work_done,
        broken=engine.broken,
    )
