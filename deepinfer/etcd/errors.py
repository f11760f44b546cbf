"""What can become of a call to etcd.

EtcdError
├── Unavailable    nobody answered, and nothing was applied
├── Ambiguous      a write was sent, and whether it was applied is unknown: read before deciding
├── Compacted      the history asked for is gone: read everything anew
├── HistoryReplaced  the store was wiped, restored or exchanged: what was seen may never have happened there
├── LeaseGone      the lease named in a write has ended; nothing was applied
├── NoSpace        the database is full; nothing was applied
├── Denied         etcd wants a login, or this login may not do that
└── Refused        etcd understood the request and rejects it
"""

from __future__ import annotations

import grpc
from grpc import aio


class EtcdError(Exception):
    """A call to etcd failed."""


class Unavailable(EtcdError):
    """Nothing was applied, or the call only read: it may be repeated."""


class Ambiguous(EtcdError):
    """A write was sent and its outcome is unknown."""


class Compacted(EtcdError):
    """The history asked for has been compacted away."""


class HistoryReplaced(EtcdError):
    """The store has another history than the one seen before."""


class LeaseGone(EtcdError):
    """The lease has ended."""


class NoSpace(EtcdError):
    """The database is full."""


class Denied(EtcdError):
    """Not permitted."""


class Refused(EtcdError):
    """The request is not acceptable."""


_TRANSIENT = frozenset({grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED})
_SURELY_UNSENT = ("failed to connect", "etcdserver: no leader", "too many requests")
_DENIED = frozenset({grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.UNAUTHENTICATED})
_LOGIN_REFUSED = ("permission denied", "authentication failed", "user name is empty", "revision of auth store is old")


def failure_of(error: aio.AioRpcError, endpoint: str, *, repeatable: bool) -> EtcdError:
    """What a gRPC error means. A failed write counts as not applied only where etcd or gRPC says so."""
    code, details = error.code(), error.details() or ""
    text = f"{endpoint}: {code.name} {details}"
    if any(words in details for words in _SURELY_UNSENT):
        return Unavailable(text)
    if code in _TRANSIENT:
        return Unavailable(text) if repeatable else Ambiguous(text)
    if code is grpc.StatusCode.OUT_OF_RANGE and "compacted" in details:
        return Compacted(text)
    if code is grpc.StatusCode.NOT_FOUND and "lease" in details:
        return LeaseGone(text)
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED and "space exceeded" in details:
        return NoSpace(text)
    if code in _DENIED or any(words in details for words in _LOGIN_REFUSED):
        return Denied(text)
    return Refused(text)
