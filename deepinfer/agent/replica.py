"""One placement on this node, from its model's files to the verified end of its processes.

A replica has one life at a time: prepare, start, watch, end. `NodeAgent` decides when a life begins and when it shall
end; how it went is read from `seen` and `status`.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from contextlib import aclosing
from typing import Any

from deepinfer.agent.device_wait import until_devices_are_free
from deepinfer.agent.draining import drained
from deepinfer.agent.engine_log import error_told, failure_told, last_useful_line
from deepinfer.agent.engine_watch import NoAnswer, NotThisEngine, Sight, connected, sights
from deepinfer.agent.launching import Exit, LaunchedEngine, Mark
from deepinfer.agent.obituary import End, crashed, how_it_ended, kept_from_starting, with_log
from deepinfer.agent.pipeline_watch import PipelineWatch
from deepinfer.agent.plan import Seen, Stage
from deepinfer.agent.restarts import FORGIVEN_AFTER_SECONDS, Restarts
from deepinfer.agent.workshop import Workshop
from deepinfer.engine_shim.client import EngineClient
from deepinfer.fleet.errors import DeepinferError, EngineWillNotStart
from deepinfer.fleet.launch import EX_CONFIG
from deepinfer.fleet.resources import Phase, Placement, ReplicaStatus

_FAILED_LINGERS_SECONDS = 5.0
_ADOPTED_STARTS_SECONDS = 30.0

log = logging.getLogger(__name__)


class Replica:
    """Its methods never wait; what takes time happens in its life, which the given TaskGroup owns."""

    def __init__(
        self, placement_id: str, workshop: Workshop, last_status: ReplicaStatus | None = None, *, inherits: bool = False
    ) -> None:
        """`inherits`: an earlier agent looked after it; what that one had counted is yet to be heard of."""
        self.id = placement_id
        self.status: ReplicaStatus | None = None  # None: nothing to say yet, so an adopted engine stays as reported
        self._workshop = workshop
        self._stage = Stage.ABSENT
        self._epoch = last_status.epoch if last_status else 0
        self._restarts = Restarts().and_before(last_status) if last_status else Restarts()
        self._started_before = inherits or bool(last_status and (last_status.pid is not None or last_status.restarts))
        self._inherits = inherits
        self._life: asyncio.Task[None] | None = None
        self._engine: LaunchedEngine | None = None
        self._ending = asyncio.Event()
        self._hurry = asyncio.Event()
        self._ready = asyncio.Event()
        self._ready_since: float | None = None
        self.pipeline = PipelineWatch(self._publish)
        self._blame: str | None = None  # why the agent itself ended the engine

    @property
    def seen(self) -> Seen:
        return Seen(self.id, self._epoch, self._stage, self._restarts.not_before)

    @property
    def mark(self) -> Mark | None:
        """Of the engine it looks after now."""
        return self._engine.mark if self._engine and self._stage in (Stage.RUNNING, Stage.ENDING) else None

    def start(self, placement: Placement, tasks: asyncio.TaskGroup) -> None:
        """Begin a life with this placement."""
        self._take(placement)
        self._begin(Stage.PREPARING)
        self._publish(phase=Phase.PREPARING, message="", endpoint=None, pid=None, memory_bytes=None, pipeline=None)
        self._live_with(placement, tasks)

    def hold(self, placement: Placement, reasons: Sequence[str]) -> None:
        """Not begun: this node takes nothing new."""
        self._take(placement)
        self._stage = Stage.ABSENT
        message = f"waiting: {self._workshop.node} starts nothing new ({'; '.join(reasons)})"
        self._publish(phase=Phase.PREPARING, message=message, endpoint=None, pid=None, memory_bytes=None)

    def adopt(self, engine: LaunchedEngine, tasks: asyncio.TaskGroup) -> None:
        """Go on with a life that an earlier agent began."""
        self._epoch = engine.mark.epoch
        self._begin(Stage.RUNNING)
        self._live_with(engine, tasks)

    def remember(self, status: ReplicaStatus | None) -> None:
        """What an earlier agent had counted; heard of once the store can be read."""
        if self._inherits and status is not None and status.epoch == self._epoch:
            self._restarts = self._restarts.and_before(status)
            if self.status is not None:
                self._publish()
        self._inherits = False

    def stop(self, *, hurry: bool = False) -> None:
        """Let running requests finish (unless in a hurry), then end the process group."""
        if hurry:
            self._hurry.set()
        if self._stage is Stage.PREPARING and self._life is not None:
            self._stage = Stage.ENDING
            self._life.cancel()
        elif self._stage is Stage.RUNNING:
            self._stage = Stage.ENDING
            self._ending.set()

    async def ended(self) -> None:
        if self._life is not None:
            await asyncio.wait({self._life})

    async def let_go(self) -> None:
        """Stop looking after the engine; it goes on."""
        if self._life is not None:
            self._life.cancel()
        await self.ended()

    def _take(self, placement: Placement) -> None:
        if self._epoch not in (0, placement.epoch):  # 0: nothing is known of an epoch before it
            self._restarts, self._started_before = Restarts(), False
        self._epoch = placement.epoch

    def _begin(self, stage: Stage) -> None:
        self._stage = stage
        self._ending, self._ready, self._hurry = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self._ready_since = self._blame = None

    def _live_with(self, origin: Placement | LaunchedEngine, tasks: asyncio.TaskGroup) -> None:
        self._engine = None if isinstance(origin, Placement) else origin
        self._life = tasks.create_task(self._live(origin), name=f"replica {self.id}")
        self._life.add_done_callback(self._given_up)

    def _given_up(self, life: asyncio.Task[None]) -> None:
        """A cancelled preparation leaves nothing; a running engine outlives its agent."""
        if life.cancelled() and self._engine is None:
            self._gone()

    async def _live(self, origin: Placement | LaunchedEngine) -> None:
        try:
            engine = self._engine = await self._started(origin) if isinstance(origin, Placement) else origin
            self._conclude(await self._run_to_its_end(engine))
        except EngineWillNotStart as error:
            self._fail(Stage.REFUSED, str(error))
        except DeepinferError as error:
            self._fail(Stage.CRASHED, str(error), patience=error.patience_seconds)
        except OSError as error:
            self._fail(Stage.CRASHED, kept_from_starting(error))
        except Exception as error:
            log.exception("the life of %s ended in a fault of this program", self.id)
            if self._engine is not None:
                await self._engine.kill()
            self._fail(Stage.CRASHED, f"The worker itself failed ({error!r}); its log has more.")

    async def _started(self, placement: Placement) -> LaunchedEngine:
        model = None
        if placement.spec.model_path is not None:  # looked at in no time, where fetching an image may take minutes
            model = await self._workshop.model_files(placement.spec, self._tell)
        start = await self._workshop.launchers[placement.spec.backend].prepared(placement, self._tell)
        model = model or await self._workshop.model_files(placement.spec, self._tell)
        await until_devices_are_free(
            placement.devices, self._workshop, lambda wait: self._tell(wait.message, needs_help=wait.needs_help)
        )
        if self._started_before:
            self._restarts = self._restarts.after_start()
        engine = await start(model)
        self._stage, self._started_before = Stage.RUNNING, True
        log.info("started %s (epoch %d) as process %d", self.id, self._epoch, engine.pid)
        self._publish(phase=Phase.STARTING, message="", pid=engine.pid)
        return engine

    def _tell(self, message: str, *, needs_help: bool = False) -> None:
        """What the preparation does, or waits for."""
        self._publish(phase=Phase.FAILED if needs_help else Phase.PREPARING, message=message)

    async def _run_to_its_end(self, engine: LaunchedEngine) -> Exit:
        """Returns when nothing of it is left."""
        async with connected(engine.socket) as client, asyncio.TaskGroup() as tasks:
            companions = [
                tasks.create_task(self._watch(client, engine)),
                tasks.create_task(self._end_when_asked(client, engine)),
                tasks.create_task(self._end_if_never_ready(engine)),
                tasks.create_task(self._forgive()),
                tasks.create_task(self.pipeline.accompany(client)),
            ]
            seen = await engine.ended()
            if self._stage is Stage.RUNNING and seen.status != EX_CONFIG:
                self._broke(how_it_ended(self._end(seen)))
            await engine.kill()  # whatever the shim left behind
            for companion in companions:
                companion.cancel()
        return seen

    async def _watch(self, client: EngineClient, engine: LaunchedEngine) -> None:
        try:
            async with aclosing(sights(client, engine.mark)) as seen:
                async for sight in seen:
                    self._take_in(sight, engine)
                    if sight.phase is Phase.FAILED:
                        await asyncio.sleep(_FAILED_LINGERS_SECONDS)  # a failed shim exits by itself
                        await self._kill_for(engine, f"The engine failed: {sight.message or 'it did not exit'}")
        except (NoAnswer, NotThisEngine) as error:
            await self._kill_for(engine, str(error))

    def _take_in(self, sight: Sight, engine: LaunchedEngine) -> None:
        if sight.phase is Phase.READY:
            self._ready.set()
            engine.note_members()
            self._ready_since = self._ready_since or asyncio.get_running_loop().time()
        phase = Phase.DRAINING if self._stage is Stage.ENDING else sight.phase
        self._publish(
            phase=phase,
            message=sight.message,
            endpoint=sight.endpoint if phase in (Phase.READY, Phase.DRAINING) else None,
            pid=engine.pid,
            memory_bytes=sight.memory_bytes,
        )

    async def _end_when_asked(self, client: EngineClient, engine: LaunchedEngine) -> None:
        await self._ending.wait()
        self._publish(phase=Phase.DRAINING, message="finishing its running requests")
        if self._ready.is_set():
            await drained(client, self._workshop.config.drain_seconds, self._hurry)
        await engine.terminate()

    async def _end_if_never_ready(self, engine: LaunchedEngine) -> None:
        limit = allowed = self._workshop.config.start_timeout_seconds
        if engine.is_adopted:
            allowed = max(limit - (time.time() - engine.created), _ADOPTED_STARTS_SECONDS)
        try:
            async with asyncio.timeout(allowed):
                await self._ready.wait()
        except TimeoutError:
            stage = f"; it had come to: {self.status.message}" if self.status and self.status.message else ""
            await self._kill_for(engine, f"It was not ready after {limit:g} s{stage}")

    async def _forgive(self) -> None:
        """Else its status would tell of old failures as long as it runs well."""
        await self._ready.wait()
        await asyncio.sleep(FORGIVEN_AFTER_SECONDS)
        self._restarts = self._restarts.forgiven()
        self._publish()

    async def _kill_for(self, engine: LaunchedEngine, reason: str) -> None:
        """At once: what hangs does not obey, and has nothing left to save."""
        self._blame = reason
        log.warning("ending %s: %s", self.id, reason)
        self._broke(reason)
        await engine.kill()

    def _broke(self, message: str) -> None:
        """Told before the end is verified: nobody shall be sent there any more."""
        self._publish(phase=Phase.RESTARTING if self._ready_since else Phase.FAILED, message=message, endpoint=None)

    def _conclude(self, seen: Exit) -> None:
        if self._stage is Stage.ENDING:
            self._gone()
        elif seen.status == EX_CONFIG:
            self._fail(Stage.REFUSED, "The engine refused its spec", self._log_line())
        else:
            end = self._end(seen)
            line = error_told(self._workshop.folder(self.id)) if end.is_explained else self._log_line()
            self._fail(Stage.CRASHED, how_it_ended(end), line)

    def _end(self, seen: Exit) -> End:
        return End(seen, self._blame, failure_told(self._workshop.folder(self.id)))

    def _log_line(self) -> str:
        return last_useful_line(self._workshop.folder(self.id)) or "it printed nothing"

    def _gone(self) -> None:
        log.info("%s is gone", self.id)
        self._stage = Stage.ABSENT
        self._publish(phase=Phase.STOPPED, message="", endpoint=None, pid=None, memory_bytes=None)

    def _fail(self, stage: Stage, reason: str, log_line: str | None = None, *, patience: float = 0.0) -> None:
        """`log_line`: what its log tells most with; None when there is no log to look into."""
        now = asyncio.get_running_loop().time()
        self._restarts = self._restarts.after_failure(now, now - (self._ready_since or now), patience)
        self._stage = stage
        again = self._restarts.not_before - now
        text = crashed(reason, self._restarts.in_a_row, again) if stage is Stage.CRASHED else reason
        if log_line is not None:
            text = with_log(text, self.id, log_line)
        log.warning("%s: %s", self.id, text)
        phase = Phase.RESTARTING if stage is Stage.CRASHED and self._ready_since else Phase.FAILED
        self._publish(phase=phase, message=text, endpoint=None, pid=None, memory_bytes=None)

    def _publish(self, **changes: Any) -> None:
        """A new status. One writer reads `status` when it is told that something changed."""
        before = self.status or ReplicaStatus(
            id=self.id, epoch=self._epoch, node=self._workshop.node, phase=Phase.STARTING
        )
        changes |= {"epoch": self._epoch, "restarts": self._restarts.total, "failures": self._restarts.in_a_row}
        changes |= {"given_up": self._stage is Stage.REFUSED}
        after = before.model_copy(update=changes)
        if after != self.status:
            self.status = after
            changed = {name for name in changes if changes[name] != getattr(before, name)}
            self._workshop.tell(not changed <= {"message", "memory_bytes"})
