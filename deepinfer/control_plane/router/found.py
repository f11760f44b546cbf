"""What lies of a prompt at one replica."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct


class Found(Struct, frozen=True):
    """In tokens. `expected` counts what is about to be filled, discounted; `held` is there by the index."""

    expected: float = 0.0
    held: int = 0
    names: Sequence[int] = ()  # of all blocks that the prompt fills
    first: int = 0  # of these, that the request would add
    known_by: str = ""  # "kv": the index; "text": a guess; "": nothing is known
    doubt: str = ""  # why not by the index

    @property
    def to_fill(self) -> Sequence[int]:
        """Names of the blocks that the request would add."""
        return self.names[self.first :]

    @property
    def is_exact(self) -> bool:
        """By the index."""
        return self.known_by == "kv"
