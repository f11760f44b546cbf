"""The head of a pipeline: its own layers first, and a link to every other stage. It implements `Stages`.

Batches go from stage to stage; results come from the last one straight back here, whatever stage is busy. Which stages
there are is decided elsewhere and told as seats. A change of them is prepared beside what is served, and then happens
between two batches: every stage begins a new epoch, what stages lost is filled in again from the journal of the stage
before them (or from the tokens), and what had not come back is sent once more. A step that is computed twice writes the
same numbers to the same places.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

import msgspec
import torch
from torch import Tensor

from deepinfer.engine_shim.engines.layer_shard.batch import Batch, StageTime, StepResult
from deepinfer.engine_shim.engines.layer_shard.pipeline.depth import Depth
from deepinfer.engine_shim.engines.layer_shard.pipeline.handshake import Secret
from deepinfer.engine_shim.engines.layer_shard.pipeline.journal import Journal
from deepinfer.engine_shim.engines.layer_shard.pipeline.link import Link
from deepinfer.engine_shim.engines.layer_shard.pipeline.messages import (
    Beat,
    Begin,
    Begun,
    Layers,
    Load,
    Loaded,
    Passed,
    Peer,
    Refill,
)
from deepinfer.engine_shim.engines.layer_shard.pipeline.remote_stage import RemoteStage, StageLost
from deepinfer.engine_shim.engines.layer_shard.pipeline.rows import rows_link, send_rows
from deepinfer.engine_shim.engines.layer_shard.stage import Stage
from deepinfer.engine_shim.engines.layer_shard.stage_work import StageWork
from deepinfer.engine_shim.engines.layer_shard.steps import Again

LOADING_SECONDS: Final = 900.0
BEGINNING_SECONDS: Final = 10.0
BEAT_SECONDS: Final = 0.25
FILLING_SECONDS: Final = 60.0  # for each batch

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Seat:
    """One stage of a pipeline: who has which layers."""

    peer: Peer
    layers: Layers


class Pipeline:
    """`lost` is told, from other threads, why a stage is given up; then nothing is launched until `begin`."""

    def __init__(
        self, first: Stage, secret: Secret, lost: Callable[[StageLost], None], journal_bytes: int = 1 << 30
    ) -> None:
        self.first = first
        self.epoch = self._last_batch = 0
        self.kv_tokens = 0  # that the other stages have room for
        self._work, self._journal = StageWork(first), Journal(journal_bytes)
        self._filled: queue.SimpleQueue[StepResult | StageLost] = queue.SimpleQueue()
        self._secret, self._lost = secret, lost
        self._tell: Callable[[StepResult], None] = self._filled.put
        self._stages: dict[str, RemoteStage] = {}
        self._doubted: set[str] = set()  # stages that were lost by one link: the others may just not have noticed
        self._seats: tuple[Seat, ...] = ()
        self._next: Link | None = None
        self._depth = Depth()
        self._sent: dict[int, tuple[float, int]] = {}
        self._broken: StageLost | None = None
        self._is_empty = False  # the layers here hold nothing of sequences that run
        self._released = threading.Event()
        threading.Thread(target=self._beat, name="pipeline-beat", daemon=True).start()

    def prepare(self, seats: Sequence[Seat]) -> None:
        """Connect to those that are new, and have their layers loaded. Blocking, beside what is served. Raises
        `StageLost`."""
        for seat in seats:
            held = self._stages.get(seat.peer.name)
            if held is None or held.lost or held.peer != seat.peer or seat.peer.name in self._doubted:
                if held:
                    held.close()
                self._doubted.discard(seat.peer.name)
                self._stages[seat.peer.name] = RemoteStage(seat.peer, self._secret, self._came, self._gone)
            self._stages[seat.peer.name].order(Load(seat.layers))
        loaded = [self._stages[seat.peer.name].answered(Loaded, seat.layers, LOADING_SECONDS) for seat in seats]
        self.kv_tokens = min(stage.kv_tokens for stage in loaded)

    @property
    def is_whole(self) -> bool:
        """No stage is missing."""
        return self._broken is None

    def put_first(self, first: Stage) -> None:
        """Other layers than before are here: what was held of sequences is computed anew by the next `begin`. In the
        thread of `launch`."""
        self._work.release()
        self.first, self._work, self._journal = first, StageWork(first), Journal(self._journal.most_bytes)
        self._is_empty = True

    def begin(self, epoch: int, seats: Sequence[Seat], again: Again | None = None) -> None:
        """Let an epoch begin. Without `again` nothing was under way. In the thread of `launch`. Raises `StageLost`."""
        self._close_next()
        self._filled = queue.SimpleQueue()
        self._seats, self.epoch, self._broken = tuple(seats), epoch, None
        self._sent.clear()
        try:
            begun = self._begun(after=self._last_batch if again else 0)
            if again:
                self._fill(again, begun)
        except StageLost as why:
            self._gone(why)
            raise
        if again:
            for under_way in again.under_way:
                self.launch(under_way.batch, under_way.token_ids)

    def follow(self, tell: Callable[[StepResult], None]) -> None:
        self._tell = tell

    def groups(self, sequences: int) -> int:
        return 0 if self._broken else self._depth.groups(sequences)

    def launch(self, batch: Batch, token_ids: Sequence[int]) -> StepResult | None:
        began, self._last_batch = time.perf_counter(), self.epoch
        decodes = batch.tokens == len(batch.spans)
        self._sent[batch.step] = (began, len(batch.spans) if decodes else 0)
        try:
            hidden = self._computed(batch, token_ids)
        except Exception as error:
            log.exception("a step of %d tokens failed", batch.tokens)
            return StepResult(batch.step, self.epoch, error=str(error) or type(error).__name__)
        self._hand_on(batch, hidden, (StageTime(time.perf_counter() - began),))
        self._journal.note(batch, hidden)  # while the next stage computes
        return None

    def release(self) -> None:
        self._released.set()
        for stage in self._stages.values():
            stage.close()
        self._close_next()
        self._work.release()

    def _begun(self, after: int) -> dict[int, Begun]:
        """From the last stage to the first, so that each finds the next one ready."""
        begun, following = dict[int, Begun](), None
        for index, seat in reversed(list(enumerate(self._seats, 1))):
            stage = self._stages[seat.peer.name]
            stage.order(Begin(self.epoch, seat.layers, index, following, after))
            begun[index] = stage.answered(Begun, self.epoch, BEGINNING_SECONDS)
            following = seat.peer
        self._connect_next()
        for name in self._stages.keys() - {seat.peer.name for seat in self._seats}:
            self._stages.pop(name).close()
        return begun

    def _computed(self, batch: Batch, token_ids: Sequence[int]) -> Tensor:
        return self._work.compute(batch, torch.tensor(token_ids, device=self.first.device))

    def _fill(self, again: Again, begun: dict[int, Begun]) -> None:
        """Have the stages that hold nothing compute what they should hold, from what the stage before them handed on.
        If several are empty, those between them compute it once more."""
        empty = [index for index, stage in begun.items() if not stage.kept] + [0] * self._is_empty
        if not empty:
            return
        before, until = max(0, min(empty) - 1), max(empty)
        journaled = begun[before].journaled if before else self._journal.held
        for planned, token_ids in again.filling:
            batch = msgspec.structs.replace(planned, until=until)
            if any(journaled.get(span.sequence, 0) < span.start + span.count for span in batch.spans):
                rows = self._computed(batch, token_ids)
                self._journal.note(batch, rows)
                if not until:
                    continue
                self._hand_on(batch, rows, ())
            elif before:
                self._stages[self._seats[before - 1].peer.name].order(Refill(self.epoch, batch))
            else:
                self._hand_on(batch, self._journal.rows_of(batch.spans), ())
            self._wait_for(batch)
        self._is_empty = False

    def _wait_for(self, batch: Batch) -> None:
        while True:
            try:
                came = self._filled.get(timeout=FILLING_SECONDS)
            except queue.Empty:
                raise StageLost(self._seats[-1].peer.name, f"filled nothing in {FILLING_SECONDS:g} s") from None
            if isinstance(came, StageLost):
                raise came
            if (came.epoch, came.step) == (self.epoch, batch.step):
                return

    def _hand_on(self, batch: Batch, rows: Tensor, times: tuple[StageTime, ...]) -> None:
        try:
            if self._next is None:
                raise ConnectionResetError("is not connected")
            send_rows(self._next, self.epoch, Passed(batch, times), rows)
        except OSError as error:
            self._gone(StageLost(self._seats[0].peer.name, str(error)))

    def _beat(self) -> None:
        """So that the stages know that their head is there."""
        while not self._released.wait(BEAT_SECONDS):
            for stage in tuple(self._stages.values()):
                with suppress(StageLost):  # told by its reader
                    stage.order(Beat())

    def _connect_next(self) -> None:
        peer, epoch = self._seats[0].peer, self.epoch
        try:
            self._next = rows_link(peer, self._secret, lambda why: self._gone(StageLost(peer.name, why, epoch)))
        except OSError as error:
            raise StageLost(peer.name, str(error)) from error

    def _close_next(self) -> None:
        if self._next:
            self._next.close()
            self._next = None

    def _came(self, result: StepResult) -> None:
        if result.epoch != self.epoch:
            return
        if sent := self._sent.pop(result.step, None):
            began, sequences = sent
            seconds = time.perf_counter() - began
            self._tell(result)  # first: the next step waits for it
            if sequences and not result.error:
                self._depth.learn(sequences, seconds, result.times)
        else:
            self._filled.put(result)

    def _gone(self, why: StageLost) -> None:
        ours = any(why.stage == seat.peer.name for seat in self._seats)
        if ours:
            self._doubted.add(why.stage)
        if self._broken is None and ours and why.epoch in (0, self.epoch):
            self._broken = why
            self._filled.put(why)
            self._close_next()  # wakes a batch that could not be handed on
            self._lost(why)
