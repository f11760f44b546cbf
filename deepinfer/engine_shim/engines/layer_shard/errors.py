"""What a layer-shard engine can refuse.

LayerShardError            an EngineWillNotStart: asking again will not help
├── UnsupportedArchitecture
├── UnreadableWeights
├── UnsupportedDtype
└── NoRoomForCache
"""

from __future__ import annotations

from deepinfer.fleet.errors import EngineWillNotStart


class LayerShardError(EngineWillNotStart):
    """The layer-shard engine cannot start with what it was given."""


class UnsupportedArchitecture(LayerShardError):
    """The model is of a family this engine was not tested with."""


class UnreadableWeights(LayerShardError):
    """The model folder is not a whole safetensors model."""


class UnsupportedDtype(LayerShardError):
    """The number format is none this engine computes in."""


class NoRoomForCache(LayerShardError):
    """The weights leave no memory for the keys and values of a single block."""
