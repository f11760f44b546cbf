"""The name of a KV block: a hash of its tokens, of everything before them, and of what else its KV depends on.

Engines name blocks in ways of their own, some with a secret. A shim renames what its engine tells and the gateway names
what a prompt would fill, both by this one function, so that the two can be compared and nothing but names need travel.
Names are deterministic across processes and machines.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from hashlib import blake2b
from typing import Any, Final

import msgspec

TOKEN_BYTES: Final = 4
_ROOT: Final = bytes(8)
_INSTEAD: Final = b"\1" + bytes(7)
"""The name of a block whose hash is the root's."""


def root_of(adapter: str) -> int:
    """What the first block of a prompt follows; 0 without an adapter."""
    return _word(b"adapter:" + adapter.encode()) if adapter else 0


def extra_digest(keys: Sequence[Any] | None) -> int:
    """What a block's KV depends on beside tokens (media, a cache salt), in 64 bits; 0: nothing. A salt is a secret."""
    return _word(msgspec.msgpack.encode(keys)) if keys else 0


def token_bytes(token_ids: Iterable[int]) -> bytes:
    """Little-endian, 32 bits each."""
    return array("I", list(token_ids)).tobytes()  # of `bytes` themselves it would make other numbers


def next_name(parent: int, tokens: bytes, extra: int = 0) -> int:
    """Of the block of these tokens that follows `parent`."""
    return _word(parent.to_bytes(8, "little") + tokens + (extra.to_bytes(8, "little") if extra else b""))


def chain(tokens: bytes, block_size: int, parent: int = 0, extra: int = 0) -> list[int]:
    """Names of the full blocks of `tokens` (see `token_bytes`) that follow `parent`; `extra` is of the first one."""
    names = []
    size, number_of = block_size * TOKEN_BYTES, int.from_bytes
    before, more = parent.to_bytes(8, "little"), extra.to_bytes(8, "little") if extra else b""
    for start in range(0, len(tokens) - size + 1, size):
        before = blake2b(before + tokens[start : start + size] + more, digest_size=8).digest()
        if before == _ROOT:
            before = _INSTEAD
        names.append(number_of(before, "little"))
        more = b""
    return names


def _word(content: bytes) -> int:
    return int.from_bytes(blake2b(content, digest_size=8).digest(), "little") or 1
