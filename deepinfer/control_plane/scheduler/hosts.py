"""The hosts of stages, as deployments of their own: so they are placed, replaced, drained and counted as replicas are.

A deployment in stages asks for its heads; from it follows one that nobody asked for, of all its heads' other stages and
spares. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable

from deepinfer.fleet.pipeline import hosts_name
from deepinfer.fleet.resources import Deployment
from deepinfer.fleet.spec import Strategy


def with_hosts(deployments: Iterable[Deployment]) -> Iterable[Deployment]:
    """Each, and the one that follows from it."""
    for deployment in deployments:
        yield deployment
        if deployment.spec.pipeline is not None:
            yield _hosts_of(deployment)


def _hosts_of(deployment: Deployment) -> Deployment:
    spec, options = deployment.spec, deployment.spec.pipeline
    each = options.stages - 1 + options.spares if options else 0
    changes = {"replicas": spec.replicas * each, "strategy": Strategy.SPREAD}
    return deployment.model_copy(update={"name": hosts_name(deployment.name), "spec": spec.model_copy(update=changes)})
