"""A replica of a fleet: a real simulated engine, and its shim's own watch, which tells what routers may know of it.

Everybody hears of KV contents and of load by the same messages, when WatchState would send them.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from pathlib import Path
from typing import Final

from deepinfer.engine_shim.engine_args import SimArgs
from deepinfer.engine_shim.engines.sim import SimEngine
from deepinfer.engine_shim.served_engine import Receive, Scope, Send, ServedEngine
from deepinfer.engine_shim.state_watch import StateWatch
from deepinfer.engine_shim.state_wire import EngineState
from deepinfer.engine_shim.status import ShimStatus
from deepinfer.engine_shim.text.byte_tokenizer import ByteTokenizer
from deepinfer.engine_shim.token_engine import TokenDelta, TokenRequest
from deepinfer.engine_shim.wire import GenerateDelta, GenerateRequest
from deepinfer.fleet.launch import EngineLaunch
from deepinfer.fleet.spec import EngineKind

MAX_MODEL_LEN: Final = 32_768


class Replica:
    """Lives on the event loop that it is made on; `watch` is run beside what is asked of it."""

    def __init__(self, place: int, args: SimArgs) -> None:
        self.place, self.args = place, args
        self.engine = SimEngine("sim", ByteTokenizer(), args, MAX_MODEL_LEN)
        self.status = ShimStatus(_launch(f"sim-{place}"))
        self.status.ready(_served(self.engine))
        self._listeners: list[Callable[[EngineState], None]] = []

    def tell(self, listener: Callable[[EngineState], None]) -> None:
        """All that it says, from the first snapshot on."""
        self._listeners.append(listener)

    async def watch(self) -> None:
        """Until cancelled."""
        async with aclosing(StateWatch(self.status, kv=True).states()) as states:
            async for state in states:
                for listener in self._listeners:
                    listener(state)

    async def answer(self, request: TokenRequest) -> AsyncIterator[TokenDelta]:
        """As the shim serves it: whoever watches it is woken at its begin and its end."""
        self.status.touch()
        try:
            async with aclosing(self.engine.generate(request)) as deltas:  # type: ignore[type-var]
                async for delta in deltas:
                    yield delta
        finally:
            self.status.touch()

    def prefill_seconds(self) -> float:
        """That computing prompts took until now; those that are not whole yet left out."""
        totals = self.engine.totals
        return (totals.prompt_tokens - totals.cached_tokens) / self.args.prefill_tokens_per_second


def _launch(placement: str) -> EngineLaunch:
    return EngineLaunch(
        placement=placement,
        epoch=1,
        engine=EngineKind.SIM,
        served_names=("sim",),
        device="cpu",
        socket=Path(f"{placement}.sock"),  # which nobody listens on
    )


def _served(engine: SimEngine) -> ServedEngine:
    """For the status alone: requests go to the engine itself."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        raise NotImplementedError

    async def generate(request: GenerateRequest) -> AsyncGenerator[GenerateDelta, None]:
        raise NotImplementedError
        yield

    return ServedEngine(
        info=lambda: engine.info,
        app=app,
        generate=generate,
        kv=engine.kv,
        load=engine.load,
        work_done=engine.work_done,
        broken=engine.broken,
        close=engine.close,
    )
