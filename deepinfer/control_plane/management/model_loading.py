"""What a model server's words mean here: which deployment is meant, and how long to wait for it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from fastapi import Request

from deepinfer.control_plane.management.dependencies import fleet_now, mirror_of
from deepinfer.control_plane.management.views import DeploymentView
from deepinfer.fleet.errors import DeploymentNotFound, InvalidRequest
from deepinfer.fleet.resources import Intent, Phase
from deepinfer.fleet.snapshot import Snapshot

LONGEST_WAIT_SECONDS = 600
_LOOK_AGAIN_SECONDS = 0.2
"""Whether the gateway reaches an engine that says it is ready: nothing here tells of that."""


def deployment_of_model(model: str, fleet: Snapshot, param: str) -> str:
    """The deployment of that name, or else the only one of that model. `param` is where the request says it."""
    of_model = [d.name for d in fleet.deployments if d.spec.model == model]
    if any(deployment.name == model for deployment in fleet.deployments):
        return model
    if len(of_model) > 1:
        raise InvalidRequest(f"{', '.join(of_model)} run {model}; name the deployment that you mean.", param=param)
    if not of_model:
        raise DeploymentNotFound(f"Nothing runs {model[:200]!r}; `deepinfer get deployments` lists what there is.")
    return of_model[0]


def text_of(body: Mapping[str, Any], field: str) -> str:
    """A field that must be a name. Raises `InvalidRequest`."""
    value = body.get(field)
    if not isinstance(value, str) or not value:
        raise InvalidRequest(f"{field} must be a name, such as smollm2.", param=field)
    return value


def without_wait(body: Mapping[str, Any]) -> tuple[dict[str, Any], float]:
    """The rest of the body, and how long its sender is ready to wait."""
    seconds = body.get("wait_seconds", 0)
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 <= seconds <= LONGEST_WAIT_SECONDS:
        told = f"wait_seconds must be a number of seconds from 0 to {LONGEST_WAIT_SECONDS}."
        raise InvalidRequest(told, param="wait_seconds")
    return {field: value for field, value in body.items() if field != "wait_seconds"}, seconds


async def settled(request: Request, name: str, seconds: float) -> DeploymentView:
    """As it is when nothing more is to be waited for, or after so long."""
    mirror = mirror_of(request)
    news = mirror.listener()
    try:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while not _is_settled(request, (await fleet_now(request)).deployment(name)):
                    with suppress(TimeoutError):
                        await asyncio.wait_for(news.wait(), _LOOK_AGAIN_SECONDS)
                    news.clear()
    finally:
        mirror.forget(news)
    return (await fleet_now(request)).deployment(name)


def _is_settled(request: Request, view: DeploymentView) -> bool:
    """A refusal is not the end: a node may be about to join."""
    if view.status.phase != "ready":
        return view.status.phase in ("failed", "stopped")
    reached = request.app.state.answering()
    ready = [r for r in view.replica_list if r.intent is Intent.SERVE and r.phase is Phase.READY]
    return reached is None or all((replica.id, replica.epoch) in reached for replica in ready)
