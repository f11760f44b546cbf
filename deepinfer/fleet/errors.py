"""Every failure has a name; its docstring is its message unless a better one is given.

DeepinferError
├── StoreConflict         somebody wrote first: look again
├── StoreUnavailable      etcd does not answer; a write may or may not have been applied
│   ├── StoreFull         its database has reached its quota
│   └── StoreDenied       it refuses our login, or what we ask with it
├── StoreRefused          etcd rejects the request itself
├── HistoryGone           changes were missed for good: read everything anew
├── AnotherFleet          the store is not the one that this process knew
├── LeaseLost             what was written under this lease is gone, or soon will be
├── NotBuiltYet           asked for something this version cannot do
├── InvalidRequest        a field is wrong; `param` names it
├── DeploymentNotFound
├── DeploymentExists
├── ReplicaNotFound
├── ModelNotServed        no deployment serves this model
├── NoReadyReplica        deployed, but nothing is ready
├── EngineFailed          the engine broke before it answered
│   └── EngineUnreachable nobody takes calls there: nothing was sent
├── EngineWillNotStart    the engine refused its spec; trying again will not help
│   └── ModelRefused      its model lies where this node takes none from
├── EngineNotInstalled    it can be started once it is installed on that node
└── ModelUnavailable      a model's files cannot be had on this node
    └── ModelCorrupt      one of them is damaged
"""

from __future__ import annotations

import inspect


class DeepinferError(Exception):
    """Something went wrong in deepinfer."""

    patience_seconds = 0.0
    """What failed so is not tried again sooner."""

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message or inspect.cleandoc(type(self).__doc__ or ""))


class StoreConflict(DeepinferError):
    """Somebody else changed the store first; nothing was written."""


class StoreUnavailable(DeepinferError):
    """etcd does not answer."""


class StoreFull(StoreUnavailable):
    """etcd's database is full; compact and defragment it with etcdctl, then `etcdctl alarm disarm`."""


class StoreDenied(StoreUnavailable):
    """etcd refuses this login; see username and password_file in [etcd]."""


class StoreRefused(DeepinferError):
    """etcd rejects the request."""


class HistoryGone(DeepinferError):
    """The store's history was compacted or replaced; read everything anew."""


class AnotherFleet(DeepinferError):
    """The store holds another fleet than before; `deepinfer fleet confirm` accepts it."""


class LeaseLost(DeepinferError):
    """The lease has ended; take a new one and write again."""


class NotBuiltYet(DeepinferError):
    """This version of deepinfer cannot do that yet."""


class InvalidRequest(DeepinferError):
    """The request is not valid."""

    def __init__(self, message: str | None = None, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class DeploymentNotFound(DeepinferError):
    """There is no deployment of that name; `deepinfer get deployments` lists them."""


class DeploymentExists(DeepinferError):
    """A deployment of that name exists already; PATCH it, or delete it first."""


class ReplicaNotFound(DeepinferError):
    """There is no replica of that name; `deepinfer get replicas` lists them."""


class ModelNotServed(DeepinferError):
    """No deployment serves this model."""


class NoReadyReplica(DeepinferError):
    """The model is deployed, but no replica is ready."""


class EngineFailed(DeepinferError):
    """The engine failed before it answered."""


class EngineUnreachable(EngineFailed):
    """Nobody takes calls where the engine should be; nothing was sent."""


class EngineWillNotStart(DeepinferError):
    """The engine refused this deployment; trying again will not help."""


class ModelRefused(EngineWillNotStart):
    """This node takes no models from there."""

    def __str__(self) -> str:
        return f"{type(self).__name__}: {super().__str__()}"


class EngineNotInstalled(DeepinferError):
    """The engine is not installed on this node; `deepinfer engine install` does that."""


class ModelUnavailable(DeepinferError):
    """The model's files cannot be had on this node."""


class ModelCorrupt(ModelUnavailable):
    """A file of the model is damaged; fetch it again."""

    def __str__(self) -> str:
        return f"{type(self).__name__}: {super().__str__()}"
