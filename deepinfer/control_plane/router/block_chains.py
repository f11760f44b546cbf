"""Names of the blocks that prompts would fill. What earlier prompts began with is not hashed again."""

from __future__ import annotations

from typing import Final

from deepinfer.engine_shim.kv_chain import TOKEN_BYTES, chain

_STRIDE: Final = 16
"""Blocks that are remembered together."""
_STRIDES: Final = 4096
"""Remembered at most in each of two ages: about 16 MB with blocks of 16 tokens."""


class BlockChains:
    """Of one gateway. A stride is found by what it follows and by its own tokens, so none is taken for another."""

    def __init__(self) -> None:
        self._new: dict[tuple[int, bytes], list[int]] = {}
        self._old: dict[tuple[int, bytes], list[int]] = {}

    def names(self, tokens: bytes, block_size: int, root: int = 0, extra: int = 0) -> list[int]:
        """Of all full blocks of `tokens` (see `kv_chain.py`); `extra` is of the first one."""
        size = block_size * TOKEN_BYTES
        names: list[int] = []
        start = 0
        if extra:
            names, start = chain(tokens[:size], block_size, root, extra), size
        parent = names[-1] if names else root
        step = size * _STRIDE
        while start + step <= len(tokens):
            stride = self._stride(parent, tokens[start : start + step], block_size)
            names += stride
            parent = stride[-1]
            start += step
        names += chain(tokens[start:], block_size, parent)
        return names

    def _stride(self, parent: int, tokens: bytes, block_size: int) -> list[int]:
        key = (parent, tokens)
        known = self._new.get(key)
        if known is None:
            known = self._old.get(key) or chain(tokens, block_size, parent)
            if len(self._new) >= _STRIDES:
                self._old, self._new = self._new, {}
            self._new[key] = known
        return known
