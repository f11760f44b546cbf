"""vLLM's KV events, from bytes to values.

vLLM sends batches in msgpack, in two forms: arrays by position (0.11; later fields may be missing) and maps with a
"type".
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Annotated, Any, Final, TypeAlias

import msgspec

log = logging.getLogger(__name__)

Number: TypeAlias = Annotated[int, msgspec.Meta(ge=0, lt=1 << 32)]
"""What is sent on in 32 bits."""
Size: TypeAlias = Annotated[int, msgspec.Meta(ge=1, lt=1 << 32)]


class BlockStored(msgspec.Struct, frozen=True, gc=False):
    """A run of blocks of one request came. The order of the fields is that of the positional form."""

    block_hashes: tuple[int | bytes, ...]
    parent_block_hash: int | bytes | None
    token_ids: tuple[Number, ...]  # of the whole run: of more blocks than came, where a sliding window skipped some
    block_size: Size
    lora_id: int | None = None
    medium: str | None = None
    lora_name: str | None = None
    extra_keys: tuple[tuple[Any, ...] | None, ...] | None = None  # one entry a block that came
    group_idx: Number | None = None
    kv_cache_spec_kind: str | None = None
    kv_cache_spec_sliding_window: Number | None = None
    locality: str | None = None


class BlockRemoved(msgspec.Struct, frozen=True, gc=False):
    """Blocks of one group went."""

    block_hashes: tuple[int | bytes, ...]
    medium: str | None = None
    group_idx: Number | None = None
    locality: str | None = None


class AllBlocksCleared(msgspec.Struct, frozen=True, gc=False):
    """The cache was emptied; `medium` is told from the versions on that clear each tier by itself."""

    medium: str | None = None
    locality: str | None = None


Event: TypeAlias = BlockStored | BlockRemoved | AllBlocksCleared

_TYPES: Final[Mapping[str, type[Event]]] = {
    "BlockStored": BlockStored,
    "BlockRemoved": BlockRemoved,
    "AllBlocksCleared": AllBlocksCleared,
    "TierBlocksCleared": AllBlocksCleared,
}


class _MapBatch(msgspec.Struct):
    events: list[dict[str, Any] | list[Any]]


class _ArrayBatch(msgspec.Struct, array_like=True):
    ts: float
    events: list[dict[str, Any] | list[Any]]


class EventDecoder:
    """Keeps in mind which unknown kinds it has warned of."""

    def __init__(self) -> None:
        self._unknown: set[str] = set()

    def decode(self, payload: bytes) -> tuple[Event, ...]:
        """The events of one batch, in order, less those of unknown kinds. `msgspec.DecodeError` if it is no batch."""
        batch = msgspec.msgpack.decode(payload)
        form: type[_MapBatch | _ArrayBatch] = _MapBatch if isinstance(batch, dict) else _ArrayBatch
        said = msgspec.convert(batch, form).events
        return tuple(event for event in map(self._event, said) if event is not None)

    def _event(self, said: dict[str, Any] | list[Any]) -> Event | None:
        kind = str(said.get("type") if isinstance(said, dict) else next(iter(said), None))
        known = _TYPES.get(kind)
        if known is None:
            self._warn(kind)
            return None
        if not isinstance(said, dict):
            said = dict(zip(known.__struct_fields__, said[1:], strict=False))
        return msgspec.convert(said, known)

    def _warn(self, kind: str) -> None:
        if kind not in self._unknown:
            self._unknown.add(kind)
            log.warning("This vLLM publishes KV events of a kind that is not known here (%r); they are skipped.", kind)
