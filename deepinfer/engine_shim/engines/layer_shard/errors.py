"""What a layer-shard engine can refuse.

LayerShardError
├── UnsupportedArchitecture
├── UnreadableWeights
├── UnsupportedDtype
└── NoRoomForCache
"""

from __future__ import annotations


class LayerShardError(Exception):
    """The engine cannot do what it was asked."""


class UnsupportedArchitecture(LayerShardError):
    """The model is of a family this engine was not tested with."""


class UnreadableWeights(LayerShardError):
    """The model folder is not a whole safetensors model."""


class UnsupportedDtype(LayerShardError):
    """The number format is none this engine computes in."""


class NoRoomForCache(LayerShardError):
    """The weights leave no memory for the keys and values of a single block."""
