"""Another process's stage, as the head sees it: orders go there, reports come back, silence is noticed."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Final, TypeVar

import msgspec

from deepinfer.engine_shim.engines.layer_shard.batch import StepResult
from deepinfer.engine_shim.engines.layer_shard.pipeline import messages
from deepinfer.engine_shim.engines.layer_shard.pipeline.frames import FrameLimits, FrameRefused, Header, Kind
from deepinfer.engine_shim.engines.layer_shard.pipeline.handshake import Role, Secret
from deepinfer.engine_shim.engines.layer_shard.pipeline.link import connected
from deepinfer.engine_shim.engines.layer_shard.pipeline.messages import (
    Alive,
    Begun,
    Layers,
    Loaded,
    Order,
    Peer,
    Trouble,
)

SILENT_SECONDS: Final = 1.5  # six beats
LOADING_SILENT_SECONDS: Final = 30.0  # importing and reading weights may hold the interpreter for long

log = logging.getLogger(__name__)

Answer = TypeVar("Answer", Loaded, Begun)


class StageLost(ConnectionError):
    """A stage cannot be reached any more, or cannot do what is asked of it."""

    def __init__(self, stage: str, reason: str, epoch: int = 0) -> None:
        super().__init__(f"stage {stage} {reason}")
        self.stage = stage
        self.epoch = epoch  # in which it was missed; 0: in any


class RemoteStage:
    """Connected when it is made. `came` gets every result, `lost` the first reason to give this stage up."""

    def __init__(
        self, peer: Peer, secret: Secret, came: Callable[[StepResult], None], lost: Callable[[StageLost], None]
    ) -> None:
        self.peer = peer
        self.alive = Alive()
        self._came, self._lost = came, lost
        self._reports: queue.SimpleQueue[Loaded | Begun | StageLost] = queue.SimpleQueue()
        self._closed = False
        try:
            self._link = connected(peer.endpoint, secret, peer.name, Role.HEAD)
        except OSError as error:
            raise StageLost(peer.name, f"cannot be reached at {peer.endpoint}: it {error}") from error
        self._link.patience(LOADING_SILENT_SECONDS)
        threading.Thread(target=self._read, name=f"stage-{peer.name}", daemon=True).start()

    def order(self, order: Order) -> None:
        """Raises `StageLost`."""
        message = messages.encoded(order)
        try:
            self._link.send(Header(Kind.ORDER, message_bytes=len(message)), message)
        except OSError as error:
            raise StageLost(self.peer.name, f"takes no orders: {error}") from error

    def answered(self, kind: type[Answer], due: Layers | int, seconds: float) -> Answer:
        """The report of these layers, or of this epoch; a late one of something else is let go. Raises `StageLost`,
        also of the stage that this one does not reach."""
        deadline = time.monotonic() + seconds
        while True:
            try:
                report = self._reports.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                raise StageLost(self.peer.name, f"did not answer within {seconds:g} s") from None
            if isinstance(report, StageLost) and report.epoch in (0, due):
                raise report
            if isinstance(report, kind) and due == (report.layers if isinstance(report, Loaded) else report.epoch):
                if kind is Begun:
                    self._link.patience(SILENT_SECONDS)
                return report

    @property
    def lost(self) -> bool:
        return self._closed

    def close(self) -> None:
        """Who waits for an answer waits no longer."""
        self._closed = True
        self._link.close()
        self._reports.put(StageLost(self.peer.name, "is not needed any more"))

    def _read(self) -> None:
        limits = FrameLimits(Kind.REPORT)
        try:
            while True:
                self._take(messages.reports.decode(self._link.receive(limits).message))
        except (OSError, FrameRefused, msgspec.DecodeError, UnicodeDecodeError) as error:
            self._give_up(StageLost(self.peer.name, str(error)))

    def _take(self, report: messages.Report) -> None:
        match report:
            case Alive():
                if report.message:
                    log.info("stage %s: %s", self.peer.name, report.message)
                self.alive = report
            case StepResult():
                self._came(report)
            case Loaded() | Begun():
                self._reports.put(report)
            case Trouble(epoch, reason, lost) if lost:
                why = StageLost(lost, reason, epoch)  # this one is there
                self._reports.put(why)
                self._lost(why)
            case Trouble():
                self._give_up(StageLost(self.peer.name, report.reason))

    def _give_up(self, why: StageLost) -> None:
        if not self._closed:
            with suppress(OSError):
                self._link.close()
            self._closed = True
            self._reports.put(why)
            self._lost(why)
