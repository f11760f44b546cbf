"""What is to be planned: a model, what it must carry at once, and the devices offered for it."""

from __future__ import annotations

from enum import StrEnum

from pydantic import Field

from deepinfer.fleet.model_shape import ModelShape
from deepinfer.fleet.resource import Record

KV_BLOCK = 16  # tokens; the engine's
STEP_TOKENS = 2048  # the engine's max_num_batched_tokens where it is told no other
MOST_RESERVED = 1 << 30
HOP_SECONDS = 0.0003  # one way on a wired network: half a round trip, and the software at both ends


class Objective(StrEnum):
    """What layers are moved for, once devices' speeds are known."""

    LATENCY = "latency"  # the shortest time for a token of a lone request
    THROUGHPUT = "throughput"  # the most tokens a second at the concurrency


class OfferedDevice(Record):
    """One device that may carry a stage."""

    name: str
    memory_bytes: int = Field(ge=0)
    kind: str = "cuda"  # "cpu", "cuda", "sim": what its speed is guessed by where nothing better is known
    layer_seconds: float | None = Field(default=None, gt=0)  # measured: one layer, one token, one request
    bandwidth: float | None = Field(default=None, gt=0)  # bytes of memory it reads in a second


class Task(Record):
    """The devices' order is the pipeline's, unless another one is better."""

    model: ModelShape
    devices: tuple[OfferedDevice, ...]
    context: int = Field(ge=1)  # tokens of a request, prompt and answer
    concurrency: int = Field(ge=1)  # requests at once
    objective: Objective | None = None  # None: latency for one request at once, else throughput
    reserve_bytes: int | None = Field(default=None, ge=0)  # on each device
    head_first: bool = False  # the first device carries the first layers, in any order: requests come in there
    hop_seconds: float = Field(default=HOP_SECONDS, ge=0)  # from a stage to the next, one way
    step_tokens: int = Field(default=STEP_TOKENS, ge=1)

    @property
    def kv_tokens(self) -> int:
        """Each request's memory is whole blocks."""
        return self.concurrency * in_blocks(self.context)

    @property
    def aim(self) -> Objective:
        if self.objective is not None:
            return self.objective
        return Objective.LATENCY if self.concurrency == 1 else Objective.THROUGHPUT

    def reserve_of(self, device: OfferedDevice) -> int:
        """For what nothing here counts: the process and its libraries (a CUDA context and cuBLAS take about half a
        GiB, Python with torch as much), what the allocator cannot use again, messages between stages.

        An eighth at most: a device capped to try something out is a part of a machine that has room for all that.
        """
        return min(MOST_RESERVED, device.memory_bytes // 8) if self.reserve_bytes is None else self.reserve_bytes


def in_blocks(tokens: int) -> int:
    return -(-tokens // KV_BLOCK) * KV_BLOCK
