"""What a placement is called, and which epoch comes next. Pure."""

from __future__ import annotations

from deepinfer.fleet.resources import Deployment


def placement_id(deployment: Deployment, slot: int) -> str:
    """Slots are given anew when what was in them is gone."""
    return f"{deployment.name}-{deployment.uid}-{slot}"


def next_epoch(deployment: Deployment, previous: int) -> int:
    """Above every epoch this slot had: one per generation at least, so even a forgotten one is not repeated."""
    return max(previous + 1, deployment.generation)
