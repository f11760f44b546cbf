"""What a process needs to host a stage, and the layers that it has ready."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from deepinfer.engine_shim.engines.layer_shard.pipeline.messages import Layers
from deepinfer.engine_shim.engines.layer_shard.stage import Stage


@dataclass(frozen=True)
class Capacity:
    """What a stage has room for."""

    kv_tokens: int
    tokens_in_a_step: int
    journal_bytes: int = 1 << 30


@dataclass(frozen=True)
class Hosting:
    """What a stage is made with. `build` reads the weights of a range of layers and says what fits beside them;
    `misses` is told, from other threads, the epoch whose head is not heard any more, and 0 when one is."""

    build: Callable[[range], tuple[Stage, Capacity]]
    threads: int = 1
    misses: Callable[[int], None] = lambda epoch: None


class ReadyLayers:
    """Ranges of layers that were read, until one of them is served with."""

    def __init__(self, build: Callable[[range], tuple[Stage, Capacity]]) -> None:
        self._build = build
        self._ready: dict[Layers, tuple[Stage, Capacity]] = {}

    @property
    def weight_bytes(self) -> int:
        return sum(stage.weight_bytes for stage, _ in tuple(self._ready.values()))

    def __contains__(self, layers: Layers) -> bool:
        return layers in self._ready

    def loaded(self, layers: Layers) -> tuple[Stage, Capacity]:
        """Blocking, where they are not ready yet. Raises a `LayerShardError`."""
        if layers not in self._ready:
            self._ready[layers] = self._build(range(*layers))
        return self._ready[layers]

    def taken(self, layers: Layers) -> tuple[Stage, Capacity]:
        """To serve with; all others are let go. Raises `KeyError`."""
        self._ready = {layers: self._ready[layers]}
        return self._ready[layers]

    def clear(self) -> None:
        self._ready = {}
