"""Every failure has a name; its docstring is its message unless a better one is given.

DeepinferError
├── StoreConflict         somebody wrote first: look again
├── StoreUnavailable      etcd does not answer; a write may or may not have been applied
│   └── StoreFull         its database has reached its quota
├── StoreRefused          etcd rejects the request itself
├── LeaseLost             what was written under this lease is gone, or soon will be
├── NotBuiltYet           asked for something this version cannot do
├── InvalidRequest        a field is wrong; `param` names it
├── DeploymentNotFound
├── DeploymentExists
├── ReplicaNotFound
├── ModelNotServed        no deployment serves this model
├── NoReadyReplica        deployed, but nothing is ready
├── EngineFailed          the engine broke before it answered
├── EngineWillNotStart    the engine refused its spec; trying again will not help
├── EngineNotInstalled    it can be started once it is installed on that node
└── ModelUnavailable      a model's files cannot be had on this node
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


class StoreRefused(DeepinferError):
    """etcd rejects the request."""


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


class EngineWillNotStart(DeepinferError):
    """The engine refused this deployment; trying again will not help."""


class EngineNotInstalled(DeepinferError):
    """The engine is not installed on this node; `deepinfer engine install` does that."""


class ModelUnavailable(DeepinferError):
    """The model's files cannot be had on this node."""
