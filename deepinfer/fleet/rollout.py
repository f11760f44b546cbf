"""What becomes of a deployment's generations: their specs as people wrote them, and how far the newest one got."""

from __future__ import annotations

from enum import StrEnum

from pydantic import Field

from deepinfer.fleet.resource import Name, Record
from deepinfer.fleet.spec import DeploymentSpec


class Revision(Record):
    """One generation of a deployment, kept so that it can be looked at and come back."""

    deployment: Name
    uid: str
    generation: int = Field(ge=1)
    created_at: str  # ISO 8601, UTC; shown to people, never compared
    cause: str = ""
    spec: DeploymentSpec


class Outcome(StrEnum):
    """Of a generation."""

    PROGRESSING = "progressing"
    COMPLETE = "complete"  # all of its replicas have been ready at once
    STALLED = "stalled"  # it makes no progress, and nothing good came before it
    ROLLED_BACK = "rolled-back"  # what was good before it runs again; the deployment still says what was asked for


class Good(Record):
    """The last generation that was complete."""

    generation: int
    spec: DeploymentSpec


class Rollout(Record):
    """What the control plane's leader concluded about the newest generation of a deployment."""

    deployment: Name
    uid: str
    generation: int
    outcome: Outcome
    reason: str = ""
    good: Good | None = None
