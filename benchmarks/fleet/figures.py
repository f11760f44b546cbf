"""What a run found, as its last line tells it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields


@dataclass(frozen=True)
class Placing:
    """From nothing to everything, since the first request was sent."""

    placed_seconds: float
    ready_seconds: float


@dataclass(frozen=True)
class Changing:
    """From a request's sending until an agent has read what came of it."""

    change_p50_ms: float
    change_p99_ms: float


@dataclass(frozen=True)
class Steady:
    """Shares of one core."""

    steady_control_plane_core: float
    steady_etcd_core: float


@dataclass(frozen=True)
class Reconnecting:
    """Since etcd was started again."""

    reconnect_seconds: float
    lost_leases: int
    moved: int
    reconnect_etcd_peak_core: float


def told(*found: object) -> str:
    """`name=value`, in order."""
    return " ".join(
        f"{field.name}={_short(getattr(each, field.name))}"
        for each in found
        for field in fields(each)  # type: ignore[arg-type]  # dataclasses all
    )


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least `share` of them do not exceed."""
    return sorted(values)[math.ceil(share * len(values)) - 1]


def _short(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.3f}"
