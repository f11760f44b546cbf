"""What one gateway is made of."""

from __future__ import annotations

from dataclasses import dataclass, field

from deepinfer.control_plane.gateway.admission import Admission
from deepinfer.control_plane.gateway.drain import Drain
from deepinfer.control_plane.gateway.metrics import Metrics
from deepinfer.control_plane.gateway.siblings import Siblings
from deepinfer.control_plane.limits.ledger import Ledger
from deepinfer.control_plane.router.replicas import Replicas


@dataclass(frozen=True)
class Parts:
    """`drain` is the HTTP server's too."""

    replicas: Replicas
    metrics: Metrics
    admission: Admission
    ledger: Ledger = field(default_factory=Ledger)
    drain: Drain = field(default_factory=Drain)
    siblings: Siblings = field(default_factory=Siblings)
    continues: bool = True  # streams whose engine died, on another replica
    media_domains: frozenset[str] = frozenset()  # engines may fetch from these

    @classmethod
    def plain(cls, replicas: Replicas) -> Parts:
        """With every default."""
        return cls(replicas, Metrics(replicas), Admission(replicas))
