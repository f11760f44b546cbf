"""From vLLM's own block hashes to names that a gateway can compute (see `kv_chain.py`).

vLLM's hashes are salted in each process, so they serve only to find a block's parent, and what is removed. The names of
blocks that went are kept for a while: a sliding window gives up a block before the next one comes that follows it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

from deepinfer.engine_shim.engines.vllm.kv_events import BlockStored
from deepinfer.engine_shim.kv_chain import extra_digest, next_name, root_of, token_bytes
from deepinfer.engine_shim.kv_contents import KvBlock, KvContents

_WORD: Final = (1 << 64) - 1
_SPARE: Final = 65_536
"""Names of blocks that went, kept before they are looked through."""


class BlockNames:
    """Of one engine. `grain`: tokens of its smallest block, of which larger ones are made; 0: not known."""

    def __init__(self, grain: int) -> None:
        self._grain = grain
        self._names: dict[int, int] = {}

    def learn(self, event: BlockStored) -> None:
        """Name the blocks of a run, where it says all of its tokens: it does not say which ones it skipped."""
        hashes, size = [block_hash(said) for said in event.block_hashes], event.block_size
        if len(hashes) * size != len(event.token_ids):
            return
        adapter = event.lora_name or (f"id {event.lora_id}" if event.lora_id is not None else "")
        begins = event.parent_block_hash is None
        parent = root_of(adapter) if begins else self._names.get(block_hash(event.parent_block_hash or 0))
        if parent is None:
            return  # nobody could ask for what follows an unknown block
        extras = (extra_digest([key for key in keys or () if key != adapter]) for keys in event.extra_keys or ())
        for number, said in enumerate(hashes):
            tokens = event.token_ids[number * size : (number + 1) * size]
            parent = self._names[said] = self._name(parent, tokens, next(extras, 0))

    def blocks(self, event: BlockStored) -> Iterator[KvBlock]:
        """Those of a run whose names are known, by this event or another one, such as of another group."""
        for said in event.block_hashes:
            name = self._names.get(block_hash(said))
            if name is not None:
                yield KvBlock(name, group=event.group_idx or 0)

    def of(self, hashes: Iterable[int | bytes]) -> Iterator[int]:
        """The known ones."""
        return (self._names[said] for said in map(block_hash, hashes) if said in self._names)

    def prune(self, contents: KvContents) -> None:
        """Forget what went, if it is much."""
        if len(self._names) > 2 * len(contents) + _SPARE:
            held = {name for _, name in contents}
            self._names = {said: name for said, name in self._names.items() if name in held}

    def forget(self) -> None:
        """The engine began anew, with other hashes."""
        self._names.clear()

    def _name(self, parent: int, tokens: tuple[int, ...], extra: int) -> int:
        """Of a block whose media or salt count from its first grain on."""
        grain = self._grain if self._grain and len(tokens) % self._grain == 0 else len(tokens)
        for start in range(0, len(tokens), grain):
            parent = next_name(parent, token_bytes(tokens[start : start + grain]), 0 if start else extra)
        return parent


def block_hash(said: int | bytes) -> int:
    """A block's hash in 64 bits: of bytes the last 8, which is what vLLM itself sends where it sends integers.

    Enough, because they are bits of a cryptographic hash: among ten million blocks two are alike once in 400,000
    times, and then a router misjudges one prompt; the engine itself compares all bytes.
    """
    return said & _WORD if isinstance(said, int) else int.from_bytes(said[-8:], "big")
