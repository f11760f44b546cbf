"""The shim process: `python -m deepinfer.engine_shim LAUNCH.json`. The agent starts one for each engine.

It answers GetInfo and WatchState from its first moment. It ends with 0 when told to stop, with 78 (EX_CONFIG) when the
engine refused its spec, so that starting it again will not help, and with 1 for anything else.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from pathlib import Path
from typing import Final

import uvloop
from pydantic import ValidationError

from deepinfer.engine_shim.call_server import taking_calls
from deepinfer.engine_shim.failure import why_it_failed
from deepinfer.engine_shim.listening import add_loopback_port, unix_socket
from deepinfer.engine_shim.loading import loaded
from deepinfer.engine_shim.port_note import note_port, noted_port
from deepinfer.engine_shim.server import engine_server
from deepinfer.engine_shim.status import ShimStatus
from deepinfer.fleet.errors import EngineFailed, EngineWillNotStart, InvalidRequest, NotBuiltYet
from deepinfer.fleet.launch import EX_CONFIG, FAILURE_LINE, EngineLaunch

_REFUSALS = (EngineWillNotStart, InvalidRequest, NotBuiltYet)
_LAST_WORDS_SECONDS: Final = 1.0
"""For watchers to read that the engine failed."""

log = logging.getLogger(__name__)


def main() -> None:
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    if len(sys.argv) != 2:
        sys.exit("usage: python -m deepinfer.engine_shim LAUNCH.json")
    try:
        launch = EngineLaunch.model_validate_json(Path(sys.argv[1]).read_bytes())
    except (OSError, ValidationError) as error:
        print(f"The launch file {sys.argv[1]} cannot be used: {error}", file=sys.stderr)
        sys.exit(EX_CONFIG)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        status = runner.run(_run(launch))
    sys.stderr.flush()
    os._exit(status)  # an engine may still be loading in native code, and nothing is left to save


async def _run(launch: EngineLaunch) -> int:
    """Serve until told to stop; the exit status."""
    loop = asyncio.get_running_loop()
    task = asyncio.current_task()
    assert task is not None  # noqa: S101 - for the type checker: a coroutine runs in a task
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, task.cancel)
    try:
        await _serve(launch)
    except asyncio.CancelledError:
        return 0
    except _REFUSALS as error:
        print(error, file=sys.stderr)
        return EX_CONFIG
    except EngineFailed as error:
        print(f"{FAILURE_LINE}{error}", file=sys.stderr, flush=True)
        os._exit(1)  # ending the event loop would wait for what hangs, and print over the reason
    except Exception:
        log.exception("the shim of %s failed", launch.placement)
    return 1


async def _serve(launch: EngineLaunch) -> None:
    """Until cancelled, or until the engine fails; `EngineFailed` when it had been ready."""
    status = ShimStatus(launch)
    try:
        async with taking_calls(status, launch.host):
            await _serve_engine(launch, status)
    except asyncio.CancelledError:
        if status.engine is not None:
            await status.engine.close()  # its processes must not outlive this one
        raise


async def _serve_engine(launch: EngineLaunch, status: ShimStatus) -> None:
    server = engine_server(status)
    with unix_socket(server, launch.socket):
        last_port = noted_port(launch.port_note, launch.epoch)
        status.endpoint = add_loopback_port(server, launch.host, last_port)
        note_port(launch.port_note, launch.epoch, int(status.endpoint.rpartition(":")[2]))
        await server.start()
        try:
            engine = await loaded(launch, status.progress, status.pipeline)
            files = await asyncio.to_thread(status.prompt_files)
            status.prompt_digest = "" if files is None else files.digest
            status.ready(engine)
            log.info("%s is ready on %s", launch.placement, status.endpoint)
            raise EngineFailed(await why_it_failed(engine, status, launch.stall_seconds))
        except Exception as error:
            status.fail(str(error) or type(error).__name__)
            await server.stop(_LAST_WORDS_SECONDS)
            raise
        finally:
            await server.stop(None)
