"""How a deployment stands, as kubectl shows it: what holds, since when, and why."""

from __future__ import annotations

from enum import StrEnum

from deepinfer.fleet.resource import Name, Record


class Aspect(StrEnum):
    """What a condition is about."""

    ACCEPTED = "Accepted"  # its spec is what the control plane works on
    SCHEDULED = "Scheduled"  # every replica has a place
    PROGRESSING = "Progressing"  # replicas are being started or replaced
    AVAILABLE = "Available"  # enough replicas answer
    DEGRADED = "Degraded"  # something is wrong that does not mend itself, or has not yet


class Condition(Record):
    """One aspect of one deployment."""

    aspect: Aspect
    holds: bool
    reason: str  # one word in CamelCase, for programs
    message: str = ""  # a sentence, for people
    since: str  # ISO 8601, UTC: when `holds` became what it is


class Conditions(Record):
    """Of one generation of a deployment; written by the control plane's leader when one changes."""

    deployment: Name
    uid: str
    generation: int
    conditions: tuple[Condition, ...]
