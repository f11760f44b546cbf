"""What the head and its stages tell each other. msgpack; every field is checked when it is read.

The head orders, a stage reports; rows pass from stage to stage with the batch they belong to.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from deepinfer.engine_shim.engines.layer_shard.batch import Batch, StageTime, StepResult

Layers = tuple[Annotated[int, Meta(ge=0, le=65_536)], Annotated[int, Meta(ge=1, le=65_536)]]
"""From the first on, up to but not including the second."""


class Peer(Struct, frozen=True):
    """A stage as another one reaches it."""

    name: Annotated[str, Meta(min_length=1, max_length=256)]  # of its placement
    endpoint: Annotated[str, Meta(min_length=3, max_length=256)]  # host:port


class Load(Struct, frozen=True, tag=True):
    """Have these layers ready; what is served goes on meanwhile."""

    layers: Layers


class Begin(Struct, frozen=True, tag=True):
    """From now on there is this epoch only."""

    epoch: Annotated[int, Meta(ge=1)]
    layers: Layers
    index: Annotated[int, Meta(ge=1, le=4096)]  # of the stage; the head is 0
    downstream: Peer | None  # None: the last stage
    after: int  # the epoch of the last batch: what is held is whole if that batch came here. 0: of another head


class Refill(Struct, frozen=True, tag=True):
    """Hand these spans' rows on once more, as they are in the journal."""

    epoch: Annotated[int, Meta(ge=1)]
    batch: Batch


class Beat(Struct, frozen=True, tag=True):
    """The head is there."""


Order = Load | Begin | Refill | Beat


class Alive(Struct, frozen=True, tag=True):
    """The stage is there, and what it did so far."""

    work_done: int = 0  # tokens
    busy_seconds: float = 0.0
    message: str = ""  # progress of loading


class Loaded(Struct, frozen=True, tag=True):
    """The layers are ready, and what they leave room for."""

    layers: Layers
    weight_bytes: int
    kv_tokens: int
    max_model_len: int


class Begun(Struct, frozen=True, tag=True):
    """The epoch has begun here, and the next stage is connected."""

    epoch: int
    kept: bool  # what it held of the sequences before
    journaled: dict[int, int]  # tokens of each sequence whose rows it can hand on again


class Trouble(Struct, frozen=True, tag=True):
    """What was ordered cannot be done, or the next stage is gone."""

    epoch: int
    reason: str
    lost: str = ""  # the name of a stage that cannot be reached


Report = Alive | Loaded | Begun | StepResult | Trouble


class Passed(Struct, frozen=True, array_like=True):
    """A batch on its way, and what it took so far."""

    batch: Batch
    times: tuple[StageTime, ...] = ()


_encoder = msgspec.msgpack.Encoder()
orders = msgspec.msgpack.Decoder(Order)
reports = msgspec.msgpack.Decoder(Report)
passed = msgspec.msgpack.Decoder(Passed)


def encoded(message: Order | Report | Passed) -> bytes:
    return _encoder.encode(message)
