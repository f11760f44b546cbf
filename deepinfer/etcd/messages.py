"""etcd's message types, and the plain values the client gives out instead of them."""

from __future__ import annotations

from dataclasses import dataclass

from deepinfer.etcd.descriptors import message_types
from deepinfer.etcd.rpc_descriptor import DESCRIPTOR_SET

_types = message_types(DESCRIPTOR_SET)

RangeRequest, RangeResponse = _types["RangeRequest"], _types["RangeResponse"]
PutRequest = _types["PutRequest"]
DeleteRangeRequest = _types["DeleteRangeRequest"]
Compare = _types["Compare"]
RequestOp = _types["RequestOp"]
TxnRequest, TxnResponse = _types["TxnRequest"], _types["TxnResponse"]
CompactionRequest, CompactionResponse = _types["CompactionRequest"], _types["CompactionResponse"]
WatchRequest, WatchResponse = _types["WatchRequest"], _types["WatchResponse"]
WatchCreateRequest = _types["WatchCreateRequest"]
WatchProgressRequest = _types["WatchProgressRequest"]
Event = _types["Event"]
LeaseGrantRequest, LeaseGrantResponse = _types["LeaseGrantRequest"], _types["LeaseGrantResponse"]
LeaseRevokeRequest, LeaseRevokeResponse = _types["LeaseRevokeRequest"], _types["LeaseRevokeResponse"]
LeaseKeepAliveRequest, LeaseKeepAliveResponse = _types["LeaseKeepAliveRequest"], _types["LeaseKeepAliveResponse"]
StatusRequest, StatusResponse = _types["StatusRequest"], _types["StatusResponse"]
SnapshotRequest, SnapshotResponse = _types["SnapshotRequest"], _types["SnapshotResponse"]
AuthenticateRequest, AuthenticateResponse = _types["AuthenticateRequest"], _types["AuthenticateResponse"]


@dataclass(frozen=True, slots=True)
class KeyValue:
    """One key as it was at some revision."""

    key: bytes
    value: bytes
    mod_revision: int
    create_revision: int
    lease: int


@dataclass(frozen=True, slots=True)
class Change:
    """One change of one key; `value` is None when it was deleted (or its lease ended)."""

    key: bytes
    value: bytes | None
    mod_revision: int


def prefix_end(prefix: bytes) -> bytes:
    """The `range_end` that makes a range of everything that starts with `prefix`."""
    stem = prefix.rstrip(b"\xff")
    return stem[:-1] + bytes([stem[-1] + 1]) if stem else b"\0"
