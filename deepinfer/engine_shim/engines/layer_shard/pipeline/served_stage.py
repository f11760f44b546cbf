"""A stage that obeys a head in another process. Synchronous; its own threads compute, read, and say that it is there.

What is read is put into one queue, and one thread takes from it: so orders and rows keep their order. Loading happens
beside it. The first unreadable byte ends a connection, and nothing else.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Final

import msgspec
import torch
from torch import Tensor

from deepinfer.engine_shim.engines.layer_shard.batch import StageTime, StepResult, fits
from deepinfer.engine_shim.engines.layer_shard.errors import LayerShardError
from deepinfer.engine_shim.engines.layer_shard.pipeline import messages
from deepinfer.engine_shim.engines.layer_shard.pipeline.frames import FrameLimits, FrameRefused, Header, Kind
from deepinfer.engine_shim.engines.layer_shard.pipeline.handshake import Role, Secret
from deepinfer.engine_shim.engines.layer_shard.pipeline.hosting import Capacity, Hosting, ReadyLayers
from deepinfer.engine_shim.engines.layer_shard.pipeline.journal import Journal
from deepinfer.engine_shim.engines.layer_shard.pipeline.link import Frame, Link
from deepinfer.engine_shim.engines.layer_shard.pipeline.listener import Listener
from deepinfer.engine_shim.engines.layer_shard.pipeline.messages import (
    Begin,
    Layers,
    Load,
    Loaded,
    Passed,
    Peer,
    Refill,
    Report,
    Trouble,
)
from deepinfer.engine_shim.engines.layer_shard.pipeline.rows import rows_link, send_rows, tell_alive
from deepinfer.engine_shim.engines.layer_shard.stage_work import StageWork

BEAT_SECONDS: Final = 0.25
HEAD_SILENT_SECONDS: Final = 2.5
_STEPS_REMEMBERED: Final = 256  # more than are ever under way

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Leave:
    pass


@dataclass(frozen=True)
class _Arrived:
    frame: Frame
    passed: Passed
    at: float


class ServedStage:
    """Listens as soon as it is made."""

    def __init__(self, address: tuple[str, int], secret: Secret, name: str, hosting: Hosting) -> None:
        self.name, self._secret, self._hosting = name, secret, hosting
        self._head: Link | None = None
        self._upstream: set[Link] = set()
        self._downstream: Link | None = None
        self._following: Peer | None = None
        self._work: StageWork | None = None
        self._journal = Journal(0)
        self._layers = ReadyLayers(hosting.build)
        self._epoch = self._index = 0
        self._last_batch = 0  # the epoch of the last one that came; filling does not count, for it may have stopped
        self._capacity = Capacity(0, 0)
        self._tokens, self._busy = 0, 0.0
        self._steps: deque[int] = deque(maxlen=_STEPS_REMEMBERED)  # of this epoch
        self._todo: queue.SimpleQueue[_Arrived | Begin | Refill | _Leave | None] = queue.SimpleQueue()
        self._closed = threading.Event()
        self._listener = Listener(address, secret, name, self._admitted)
        self._computing = threading.Thread(target=self._compute, name="stage", daemon=True)
        self._computing.start()
        threading.Thread(target=self._beat, name="stage-beat", daemon=True).start()

    @property
    def endpoint(self) -> str:
        return self._listener.endpoint

    @property
    def work_done(self) -> int:
        """Tokens computed."""
        return self._tokens

    @property
    def memory_bytes(self) -> int:
        """Of weights, and of what is held of sequences."""
        work = self._work
        return self._layers.weight_bytes + (work.kv_tokens_held * work.stage.kv_shape.bytes_per_token if work else 0)

    def leave(self) -> None:
        """Hold nothing of any head, for this process is one now."""
        self._todo.put(_Leave())

    def close(self) -> None:
        """Stop after the batch under way, and free the memory."""
        self._closed.set()
        self._listener.close()
        for link in (self._head, self._downstream, *tuple(self._upstream)):
            if link:
                link.close()
        self._todo.put(None)
        self._computing.join()

    def _admitted(self, role: Role, link: Link) -> None:
        match role:
            case Role.HEAD:
                former, self._head = self._head, link
                if former:
                    former.close()
                self._read_orders(link)
            case Role.ROWS:
                self._read_rows(link)

    def _read_orders(self, link: Link) -> None:
        limits = FrameLimits(Kind.ORDER)
        with _until_it_ends(self.name, "the head"):
            while True:
                match messages.orders.decode(link.receive(limits).message):
                    case Load(layers):
                        threading.Thread(target=self._load, args=(layers,), name="stage-loading", daemon=True).start()
                    case Begin() as begin:
                        if self._downstream:
                            self._downstream.close()  # wakes a batch that could not be handed on
                        self._todo.put(begin)
                    case Refill() as refill:
                        self._todo.put(refill)
        if self._head is link:
            self._head = None
            self._hosting.misses(self._epoch)

    def _read_rows(self, link: Link) -> None:
        work = self._work
        if work is None:
            log.warning("rows came for stage %s before the head had told it what to do", self.name)
            return
        limits = FrameLimits(Kind.ROWS, self._capacity.tokens_in_a_step, work.stage.width, work.stage.dtype)
        self._upstream.add(link)
        with _until_it_ends(self.name, "the stage before"):
            while True:
                frame = link.receive(limits)
                self._todo.put(_Arrived(frame, messages.passed.decode(frame.message), time.perf_counter()))
        self._upstream.discard(link)

    def _load(self, layers: Layers) -> None:
        try:
            if layers not in self._layers:
                self._report(messages.Alive(message=f"reading the weights of layers {layers[0]} to {layers[1] - 1}"))
            stage, capacity = self._layers.loaded(layers)
        except LayerShardError as error:
            self._report(Trouble(0, str(error)))
        except Exception as error:
            log.exception("loading layers %s failed", layers)
            self._report(Trouble(0, f"its layers could not be loaded: {error!r}"))
        else:
            self._report(Loaded(layers, stage.weight_bytes, capacity.kv_tokens, stage.max_model_len))

    def _compute(self) -> None:
        torch.set_num_threads(self._hosting.threads)  # OpenMP counts threads for each calling thread
        while (todo := self._todo.get()) is not None:
            try:
                match todo:
                    case Begin():
                        self._begin(todo)
                    case _Leave():
                        self._leave()
                    case Refill(epoch, batch) if epoch == self._epoch:
                        self._hand_on(Passed(batch), self._journal.rows_of(batch.spans))
                    case _Arrived() if todo.frame.header.epoch == self._epoch:
                        self._pass_on(todo)
            except Exception as error:  # whatever was asked, the next order may be a better one
                log.warning("stage %s could not hand a batch on: %r", self.name, error)
                epoch = todo.epoch if isinstance(todo, Begin | Refill) else self._epoch
                self._report(Trouble(epoch, f"could not hand a batch on: {error}", self._lost(error)))
            finally:
                if isinstance(todo, _Arrived):
                    todo.frame.done()
        if self._work:
            self._work.release()

    def _begin(self, begin: Begin) -> None:
        """What is held of sequences is kept where the layers stay the same."""
        if begin.epoch < self._epoch:
            self._report(Trouble(begin.epoch, f"serves epoch {self._epoch}, and {begin.epoch} is older"))
            return
        stage, self._capacity = self._layers.taken(begin.layers)
        self._downstream, self._following = None, begin.downstream
        for link in tuple(self._upstream):
            link.close()  # of an older epoch; that of this one comes once this has begun
        kept = self._work is not None and self._work.stage is stage and 0 < begin.after == self._last_batch
        if not kept:
            self._last_batch = 0
            self._work, self._journal = StageWork(stage), Journal(self._capacity.journal_bytes)
        if peer := begin.downstream:
            self._downstream = rows_link(peer, self._secret, partial(self._missed, peer, begin.epoch))
        self._epoch, self._index = begin.epoch, begin.index
        self._steps.clear()
        if head := self._head:
            head.patience(HEAD_SILENT_SECONDS)
            self._hosting.misses(0)
        self._report(messages.Begun(begin.epoch, kept, self._journal.held))

    def _leave(self) -> None:
        head, self._head, self._work = self._head, None, None
        for link in (head, self._downstream, *tuple(self._upstream)):
            if link:
                link.close()
        self._downstream, self._journal = None, Journal(0)
        self._layers.clear()

    def _missed(self, peer: Peer, epoch: int, why: str) -> None:
        self._report(Trouble(epoch, f"does not reach the next stage: {why}", peer.name))

    def _lost(self, error: Exception) -> str:
        return self._following.name if self._following and isinstance(error, OSError) else ""

    def _pass_on(self, arrived: _Arrived) -> None:
        passed, began = arrived.passed, time.perf_counter()
        batch, rows, work = passed.batch, arrived.frame.rows, self._work
        if work is None or batch.step in self._steps:
            return  # computed once more, a step would choose its tokens twice
        self._steps.append(batch.step)
        try:
            fits(batch, arrived.frame.header.rows, self._capacity.kv_tokens)
            hidden = work.compute(batch, torch.empty(0) if rows is None else rows.to(work.stage.device))
            choices = work.choose(batch, hidden) if work.stage.shape.last else ()
        except Exception as error:
            log.exception("a step of %d tokens failed", batch.tokens)
            reason = f"stage {self._index}: {error or type(error).__name__}"
            self._report(StepResult(batch.step, self._epoch, error=reason))
            return
        if batch.until is None:
            self._last_batch = self._epoch
        seconds = time.perf_counter() - began
        self._tokens, self._busy = self._tokens + batch.tokens, self._busy + seconds
        times = (*passed.times, StageTime(seconds, began - arrived.at))
        if self._downstream is None or batch.until == self._index:
            self._report(StepResult(batch.step, self._epoch, choices, times))
        else:
            try:
                self._hand_on(Passed(batch, times), hidden)
            finally:
                self._journal.note(batch, hidden)  # while the next stage computes

    def _hand_on(self, passed: Passed, rows: Tensor) -> None:
        if self._downstream:
            send_rows(self._downstream, self._epoch, passed, rows)

    def _report(self, report: Report) -> None:
        if head := self._head:
            message = messages.encoded(report)
            with suppress(OSError):  # a head that is gone asks again, or another one does
                head.send(Header(Kind.REPORT, message_bytes=len(message)), message)

    def _beat(self) -> None:
        while not self._closed.wait(BEAT_SECONDS):
            self._report(messages.Alive(self._tokens, self._busy))
            for link in tuple(self._upstream):
                with suppress(OSError):  # told by who reads it
                    tell_alive(link)


@contextmanager
def _until_it_ends(name: str, peer: str) -> Iterator[None]:
    """Whatever ends a connection ends no more than that."""
    try:
        yield
    except (FrameRefused, msgspec.DecodeError, UnicodeDecodeError) as error:
        log.warning("%s of stage %s %s; its connection is closed", peer, name, error)
    except OSError as error:
        log.info("%s of stage %s %s", peer, name, error)
