"""A time as records and answers tell it: ISO 8601, UTC. Shown to people, never compared."""

from __future__ import annotations

from datetime import UTC, datetime


def told_time(time: datetime | None = None, timespec: str = "seconds") -> str:
    """Now, if no time is given."""
    return (time or datetime.now(UTC)).isoformat(timespec=timespec).replace("+00:00", "Z")
