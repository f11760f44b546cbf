"""What an engine's batches are given to: one stage that holds the whole model, or a pipeline that begins here."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import Protocol

import torch

from deepinfer.engine_shim.engines.layer_shard.batch import Batch, StageTime, StepResult
from deepinfer.engine_shim.engines.layer_shard.stage import Stage
from deepinfer.engine_shim.engines.layer_shard.stage_work import StageWork

log = logging.getLogger(__name__)


class Stages(Protocol):
    """All layers of a model, wherever they are. Used by the engine's thread alone."""

    epoch: int  # rises when stages are replaced; results of another one are not wanted any more

    @property
    def first(self) -> Stage:
        """The layers here."""
        ...

    def follow(self, tell: Callable[[StepResult], None]) -> None:
        """Who gets the results that `launch` does not return, from any thread."""
        ...

    def groups(self, sequences: int) -> int:
        """How many batches should be under way, so that no stage waits for another. 0: none can be computed now."""
        ...

    def launch(self, batch: Batch, token_ids: Sequence[int]) -> StepResult | None:
        """Compute what can be computed here. None: what came of it is told later."""
        ...

    def release(self) -> None:
        """Free weights and memory; nothing can be computed afterwards."""
        ...


class WholeModel:
    """One stage with all layers."""

    def __init__(self, stage: Stage) -> None:
        self.epoch = 0
        self.first = stage
        self._work = StageWork(stage)

    def follow(self, tell: Callable[[StepResult], None]) -> None:
        pass  # all are returned

    def groups(self, sequences: int) -> int:
        return 1

    def launch(self, batch: Batch, token_ids: Sequence[int]) -> StepResult:
        began = time.perf_counter()
        try:
            hidden = self._work.compute(batch, torch.tensor(token_ids, device=self.first.device))
            choices = self._work.choose(batch, hidden)
        except Exception as error:
            log.exception("a step of %d tokens failed", batch.tokens)
            return StepResult(batch.step, error=str(error) or type(error).__name__)
        return StepResult(batch.step, choices=choices, times=(StageTime(time.perf_counter() - began),))

    def release(self) -> None:
        self._work.release()
