"""The names that requests' "model" may use, as they are listed. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from deepinfer.control_plane.router.readiness import Weights, created_seconds
from deepinfer.fleet.alias import Alias
from deepinfer.fleet.resources import Deployment


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A name that a request's "model" may use."""

    name: str
    created: int  # seconds since 1970
    ready: bool
    parent: str | None = None  # the deployment whose engines serve it besides their own names, as adapters are
    root: str | None = None  # of an alias: the deployment that gets most of its requests


def served_models(
    deployments: Mapping[str, Sequence[Deployment]],
    parents: Mapping[str, str],
    aliases: Iterable[tuple[Alias, Weights]],
    is_ready: Callable[[str], bool],
) -> tuple[ServedModel, ...]:
    """Every name deployed, ready or not, the oldest first; and what their engines serve besides, by `parents`."""
    served = [
        ServedModel(name, min(map(created_seconds, meant)), is_ready(name)) for name, meant in deployments.items()
    ]
    created = {model.name: model.created for model in served}
    served += (ServedModel(name, created.get(parent, 0), is_ready(name), parent) for name, parent in parents.items())
    served += (
        ServedModel(alias.name, created_seconds(alias), is_ready(alias.name), root=next(iter(weights)))
        for alias, weights in aliases
    )
    return tuple(sorted(served, key=lambda model: (model.created, model.name)))
