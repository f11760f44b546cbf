"""What one transaction does, and what came of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from deepinfer.etcd import messages as pb
from deepinfer.etcd.messages import KeyValue


@dataclass(frozen=True, slots=True)
class Transaction:
    """Put and delete if every key is still at its `unchanged` mod_revision (0: the key is absent)."""

    unchanged: Sequence[tuple[bytes, int]]
    puts: Sequence[tuple[bytes, bytes]] = ()
    deletes: Sequence[bytes] = ()
    lease: int = 0  # the puts end with it

    def request(self) -> Any:
        puts = [pb.PutRequest(key=key, value=value, lease=self.lease) for key, value in self.puts]
        deletes = [pb.DeleteRangeRequest(key=key) for key in self.deletes]
        return pb.TxnRequest(
            compare=[
                pb.Compare(key=key, target=pb.Compare.MOD, result=pb.Compare.EQUAL, mod_revision=revision)
                for key, revision in self.unchanged
            ],
            success=[pb.RequestOp(request_put=put) for put in puts]
            + [pb.RequestOp(request_delete_range=delete) for delete in deletes],
            failure=[pb.RequestOp(request_range=pb.RangeRequest(key=key, keys_only=True)) for key, _ in self.unchanged],
        )


@dataclass(frozen=True, slots=True)
class Outcome:
    """Whether the transaction was applied, at which revision, and if not: the compared keys as they are now.

    One that only deletes keys that are absent changes nothing: its revision is that of somebody else's write.
    """

    applied: bool
    revision: int
    changed: bool = False
    found: tuple[KeyValue, ...] = ()
