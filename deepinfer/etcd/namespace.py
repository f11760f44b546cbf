"""Keys below a prefix of their own, which only this module sees: several users can share an etcd."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, replace

from deepinfer.etcd.messages import KeyValue, prefix_end
from deepinfer.etcd.transaction import Transaction
from deepinfer.etcd.watch import Batch


@dataclass(frozen=True, slots=True)
class Namespace:
    """Inner keys are the user's, outer ones are etcd's. Empty, they are the same."""

    prefix: bytes

    def outer(self, key: bytes) -> bytes:
        return self.prefix + key

    def inner(self, found: KeyValue) -> KeyValue:
        return replace(found, key=found.key[len(self.prefix) :]) if self.prefix else found

    def range_of(self, prefix: bytes) -> tuple[bytes, bytes]:
        """The first key and the end of everything that starts with `prefix`."""
        outer = self.outer(prefix)
        return outer or b"\0", prefix_end(outer)

    def transaction(self, inner: Transaction) -> Transaction:
        return replace(
            inner,
            unchanged=[(self.outer(key), revision) for key, revision in inner.unchanged],
            puts=[(self.outer(key), value) for key, value in inner.puts],
            deletes=[self.outer(key) for key in inner.deletes],
        )

    async def batches(self, outer: AsyncGenerator[Batch, None]) -> AsyncGenerator[Batch, None]:
        length = len(self.prefix)
        async with aclosing(outer):
            async for batch in outer:
                yield replace(
                    batch, changes=tuple(replace(change, key=change.key[length:]) for change in batch.changes)
                )
