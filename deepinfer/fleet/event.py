"""What happened, told to people. Kept for about an hour; nothing is decided by it."""

from __future__ import annotations

from deepinfer.fleet.resource import Record


class Event(Record):
    """One thing that happened to one object."""

    about: str  # "deployments/chat", "nodes/node-1"
    at: str  # ISO 8601, UTC
    reason: str  # one word in CamelCase, for programs
    message: str
