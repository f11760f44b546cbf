"""`python -m deepinfer.engine_shim.engines.sim_server serve MODEL …`, as one would type `vllm serve MODEL …`."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager, nullcontext

import uvicorn
import uvloop

from deepinfer.engine_shim.engines.sim import SimEngine
from deepinfer.engine_shim.engines.sim_server.app import SimServer
from deepinfer.engine_shim.engines.sim_server.flags import Flags, parsed
from deepinfer.engine_shim.engines.sim_server.kv_publisher import publishing
from deepinfer.engine_shim.engines.sim_server.metrics import metrics_of
from deepinfer.engine_shim.engines.sim_start import started
from deepinfer.engine_shim.openai_app.app import openai_app
from deepinfer.engine_shim.text_generation import TextGenerator
from deepinfer.fleet.errors import DeepinferError

log = logging.getLogger(__name__)


class _Server(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """They are caught from the first moment on, and do not end the process a second time."""
        yield


def main() -> int:
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(levelname)s %(asctime)s %(name)s: %(message)s")
    flags = parsed(sys.argv[1:])
    try:
        listener = _bound(flags)
    except OSError as error:
        print(f"Cannot listen on {flags.host}:{flags.port}: {error.strerror}; take another --port.", file=sys.stderr)
        return 1
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner, listener:
        return runner.run(_run(flags, listener))


def _bound(flags: Flags) -> socket.socket:
    """Taken before the engine loads, and listening when it has: until then clients are refused, not kept waiting."""
    family = socket.AF_INET6 if ":" in flags.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    listener.bind((flags.host, flags.port))
    return listener


async def _run(flags: Flags, listener: socket.socket) -> int:
    """The exit status."""
    task = asyncio.current_task()
    assert task is not None  # noqa: S101 - for the type checker: a coroutine runs in a task
    _on_signals(lambda _: task.cancel())
    try:
        log.info("Starting to load model %s...", flags.model)
        engine, tokenizer = await started(flags.names[0], flags.folder, flags.sim, flags.max_model_len)
        log.info("Loading weights took %.2f seconds", flags.sim.load_seconds)
    except asyncio.CancelledError:
        return 0
    except DeepinferError as error:
        print(error, file=sys.stderr)
        return 1
    openai = openai_app(TextGenerator(engine, tokenizer), flags.names)
    app = SimServer(openai, metrics_of(engine, flags.names[0]), os.environ.get("VLLM_API_KEY", ""))
    try:
        with nullcontext() if flags.kv_events is None else publishing(engine.kv, flags.kv_events):
            await _serve(app, engine, listener)
    finally:
        if not app.broken:
            await engine.close()
    return 0


def _on_signals(act: Callable[[int], object]) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, act, number)


async def _serve(app: SimServer, engine: SimEngine, listener: socket.socket) -> None:
    """Until told to stop, and running requests have ended; told once more with Ctrl-C, it does not wait for them."""
    config = uvicorn.Config(app, loop="none", ws="none", lifespan="off", log_config=None, access_log=False)
    server = _Server(config)
    _on_signals(lambda number: server.handle_exit(number, None))
    async with asyncio.TaskGroup() as tasks:
        watching = tasks.create_task(_tell_when_broken(app, engine), name="engine breaks")
        await server.serve([listener])
        watching.cancel()


async def _tell_when_broken(app: SimServer, engine: SimEngine) -> None:
    app.broken = await engine.broken()
    log.error("The engine failed: %s.", app.broken)
    await engine.close()  # running requests end with an error


if __name__ == "__main__":
    sys.exit(main())
