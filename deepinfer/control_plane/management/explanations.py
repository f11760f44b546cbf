"""The scheduler's reasons as the API tells them. Pure."""

from __future__ import annotations

import dataclasses

from deepinfer.control_plane.management.scheduling_views import ExplanationView
from deepinfer.control_plane.openai_errors import UnreadableDeployment
from deepinfer.control_plane.scheduler.explanation import explained
from deepinfer.control_plane.scheduler.sight import Outlook, Sight
from deepinfer.fleet.snapshot import Snapshot


def explanation_of(fleet: Snapshot, name: str, outlook: Outlook) -> ExplanationView:
    """Raises `DeploymentNotFound`, and `UnreadableDeployment` for one that the scheduler leaves alone."""
    if name in Sight(fleet).unreadable_deployments:
        raise UnreadableDeployment(f"A record of {name} cannot be read by this version, so the scheduler leaves it.")
    return ExplanationView(name=name, **dataclasses.asdict(explained(fleet, name, outlook)))
