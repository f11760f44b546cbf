"""A replica in stages: what a user may ask for, which stage is where, and what its processes tell of it.

One of its processes is the head, which takes requests and has the first layers. The others host stages: they take
whatever layers the head gives them, or wait as spares. Who is what, a layout says; any of them can be anything.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from deepinfer.fleet.model_shape import ModelShape
from deepinfer.fleet.resource import Name, Record

MOST_STAGES = 64
Layers = tuple[Annotated[int, Field(ge=0)], Annotated[int, Field(ge=1)]]
"""From the first on, up to but not including the second."""


HOSTS_SUFFIX = ".stages"


def hosts_name(deployment: str) -> str:
    """What the hosts of a deployment's stages are placed as: a deployment of its own, which nobody asked for."""
    return f"{deployment}{HOSTS_SUFFIX}"


def is_hosts_name(deployment: str) -> bool:
    return deployment.endswith(HOSTS_SUFFIX)


def deployment_served(name: str) -> str:
    """The deployment that these heads or hosts belong to."""
    return name.removesuffix(HOSTS_SUFFIX)


class PipelineOptions(Record):
    """How many machines share a replica's layers."""

    stages: int = Field(ge=2, le=MOST_STAGES)  # at most: fewer serve while a node is missing, where the model fits
    spares: int = Field(default=0, ge=0, le=MOST_STAGES)  # processes that wait for a stage to be lost
    layers: tuple[Annotated[int, Field(ge=1)], ...] | None = None  # of each stage in order; None: by what they can hold

    @model_validator(mode="after")
    def _one_count_a_stage(self) -> PipelineOptions:
        if self.layers is not None and len(self.layers) != self.stages:
            raise ValueError(f"layers has {len(self.layers)} counts for {self.stages} stages; give one for each")
        return self


class Seat(Record):
    """One stage after the head, and the layers it has."""

    placement: str
    epoch: int  # of the placement
    node: Name
    endpoint: str  # host:port where the stage listens
    layers: Layers


class Layout(Record):
    """Which stages a replica has now. A new one replaces it as a whole."""

    id: str  # of the replica's own placement
    epoch: int  # of that placement
    number: int = Field(ge=1)  # rises with every change
    head: str  # the placement of the process that takes requests: the replica's own, or that of a host
    head_epoch: int
    node: Name  # the head's
    layers: Layers  # the head's own
    seats: tuple[Seat, ...]
    avoided: tuple[str, ...] = ()  # endpoints where a stage was lost: not seated again until they are others
    why: str = ""


class PipelineState(Record):
    """What a head or a host of a stage tells of itself."""

    endpoint: str = ""  # a host's: host:port where it listens for its head
    shape: ModelShape | None = None  # of the model, read from its files
    serves: str = ""  # the layout that it is the head of, by its id
    number: int = 0  # of that layout
    lost: str = ""  # the placement of a stage that a head cannot reach
    misses: int = 0  # the number of the layout whose head this process does not hear any more
    reason: str = ""
