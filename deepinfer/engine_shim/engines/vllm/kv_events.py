"""vLLM's KV events: bytes to values, and values into contents.

vLLM sends batches in msgpack, in two forms: arrays by position (0.11; later fields may be missing) and maps with a
"type". Blocks that lie elsewhere than on the device (offloaded to the CPU's memory, to storage) are left out: they
come with keys and lives of their own, and a router that took them for resident would count on KV that is not there.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Final, TypeAlias

import msgspec

from deepinfer.engine_shim.kv_contents import KvBlock, KvContents, KvGroup

log = logging.getLogger(__name__)

_DEVICE: Final = ("GPU", None)
"""vLLM's word for where its own KV cache lies, on the CPU too; 0.10 and the connectors may leave it out."""
_WORD: Final = (1 << 64) - 1

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


def apply(events: Sequence[Event], contents: KvContents) -> None:
    """In their order; what can be told together is one change of the contents."""
    removed: list[tuple[int, int]] = []
    stored: list[KvBlock] = []
    for event in events:
        if event.medium not in _DEVICE or event.locality == "REMOTE":
            continue
        if stored and not isinstance(event, BlockStored):  # in one change, what goes goes first
            contents.change(stored, removed)
            removed, stored = [], []
        match event:
            case BlockStored():
                _learn_group(event, contents)
                stored += _blocks(event)
            case BlockRemoved():
                removed += [(event.group_idx or 0, block_hash(said)) for said in event.block_hashes]
            case AllBlocksCleared():
                removed = []
                contents.clear()
    contents.change(stored, removed)


def block_hash(said: int | bytes) -> int:
    """A block's hash in 64 bits: of bytes the last 8, which is what vLLM itself sends where it sends integers.

    Enough, because they are bits of a cryptographic hash: among ten million blocks two are alike once in 400,000
    times, and then a router misjudges one prompt; the engine itself compares all bytes.
    """
    word = said & _WORD if isinstance(said, int) else int.from_bytes(said[-8:], "big")
    return word or 1  # 0 is the root


def extra_digest(keys: Sequence[Any] | None) -> int:
    """What a block's hash covers beside tokens, in 64 bits; 0: nothing. A digest, for a cache salt is a secret."""
    if not keys:
        return 0
    digest = hashlib.blake2b(msgspec.msgpack.encode(keys), digest_size=8).digest()
    return int.from_bytes(digest, "big") or 1


def _learn_group(event: BlockStored, contents: KvContents) -> None:
    """Versions that do not name groups have one only: with KV events they keep hybrid models' layers together."""
    index = event.group_idx or 0
    kind, window = event.kv_cache_spec_kind or "full_attention", event.kv_cache_spec_sliding_window or 0
    tail = 1 if kind == "mamba" else max(1, window - 1) if window else 0
    # The end of a prompt may be told as a block smaller than the group's.
    largest = max([event.block_size, *(g.block_size for g in contents.groups() if g.index == index)])
    contents.describe(KvGroup(index, largest, kind, tail))


def _blocks(event: BlockStored) -> Iterator[KvBlock]:
    """Which tokens a block has is known only where the run is whole: the event does not say what it skipped."""
    size, hashes = event.block_size, [block_hash(said) for said in event.block_hashes]
    whole = len(hashes) * size == len(event.token_ids)
    parent = 0 if event.parent_block_hash is None else block_hash(event.parent_block_hash)
    lora = event.lora_name or (f"id {event.lora_id}" if event.lora_id is not None else "")
    extra_keys = event.extra_keys or ()
    for number, said in enumerate(hashes):
        extra = extra_digest(extra_keys[number]) if number < len(extra_keys) else 0
        if whole:
            tokens = event.token_ids[number * size : (number + 1) * size]
            yield KvBlock(said, parent, tokens, event.group_idx or 0, lora, extra)
        else:
            yield KvBlock(said, 0, (), event.group_idx or 0, lora, extra)
        parent = said
