"""What vLLM's KV events make of the contents.

Blocks that lie elsewhere than on the device (offloaded to the CPU's memory, to storage) are left out: they come with
keys and lives of their own, and a router that took them for resident would count on KV that is not there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from deepinfer.engine_shim.engines.vllm.kv_events import AllBlocksCleared, BlockRemoved, BlockStored, Event
from deepinfer.engine_shim.engines.vllm.kv_names import BlockNames
from deepinfer.engine_shim.kv_contents import BlockKey, KvBlock, KvContents, KvGroup

_DEVICE: Final = ("GPU", None)
"""vLLM's word for where its own KV cache lies, on the CPU too; 0.10 and the connectors may leave it out."""


def apply(events: Sequence[Event], names: BlockNames, contents: KvContents) -> None:
    """In their order; what can be told together is one change of the contents."""
    events = [event for event in events if event.medium in _DEVICE and event.locality != "REMOTE"]
    for event in events:
        if isinstance(event, BlockStored):
            names.learn(event)  # all before any is applied: a window's run is named by that of another group
    removed: list[BlockKey] = []
    stored: list[KvBlock] = []
    for event in events:
        if stored and not isinstance(event, BlockStored):  # in one change, what goes goes first
            contents.change(stored, removed)
            removed, stored = [], []
        match event:
            case BlockStored():
                _learn_group(event, contents)
                stored += names.blocks(event)
            case BlockRemoved():
                removed += [(event.group_idx or 0, name) for name in names.of(event.block_hashes)]
            case AllBlocksCleared():
                removed = []
                contents.clear()
    contents.change(stored, removed)
    names.prune(contents)


def _learn_group(event: BlockStored, contents: KvContents) -> None:
    """Versions that do not name groups have one only: with KV events they keep hybrid models' layers together."""
    index = event.group_idx or 0
    kind, window = event.kv_cache_spec_kind or "full_attention", event.kv_cache_spec_sliding_window or 0
    tail = 1 if kind == "mamba" else max(1, window - 1) if window else 0
    # The end of a prompt may be told as a block smaller than the group's.
    largest = max([event.block_size, *(g.block_size for g in contents.groups() if g.index == index)])
    contents.describe(KvGroup(index, largest, kind, tail))
