"""What a model's parts weigh: what its stages need memory for, whoever holds them."""

from __future__ import annotations

from deepinfer.fleet.layer_shard_models import DTYPE_BYTES
from deepinfer.fleet.resource import Record


class ModelShape(Record):
    """What the parts of a model weigh, in bytes of the dtype it is computed in."""

    architecture: str
    dtype: str
    layer_bytes: tuple[int, ...]
    embedding_bytes: int
    tied: bool  # the head is the embedding, so a last stage that is not the first holds a copy of it
    head_bytes: int  # 0 if tied
    norm_bytes: int  # the final one
    kv_bytes: int  # of one token in one layer
    hidden: int
    attention_width: int  # all query heads together
    mlp_width: int
    vocabulary: int
    longest_context: int
    sliding_window: int | None = None

    @property
    def layers(self) -> int:
        return len(self.layer_bytes)

    @property
    def number_bytes(self) -> int:
        return DTYPE_BYTES[self.dtype]

    @property
    def kv_width(self) -> int:
        """Of all key heads together, or of all value heads."""
        return self.kv_bytes // (2 * self.number_bytes)

    @property
    def weight_bytes(self) -> int:
        """Of the whole model on one device."""
        return sum(self.layer_bytes) + self.embedding_bytes + self.head_bytes + self.norm_bytes
