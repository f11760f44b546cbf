"""Which replicas could prefill for one that decodes, as the router sees them now."""

from __future__ import annotations

from deepinfer.control_plane.router.connection import Connection
from deepinfer.control_plane.router.loan import Loan
from deepinfer.control_plane.router.replicas import Replicas


def may_be_prefilled(replicas: Replicas, model: str) -> bool:
    """Whether the prompt of a request for `model` may be another replica's work than the answer."""
    decoding = replicas.roles.decoding
    return bool(decoding) and any(connection.deployment in decoding for connection in replicas.ready(model))


def prefillers(replicas: Replicas, model: str, loan: Loan) -> list[Connection]:
    """Ready ones that compute of a prompt for `model` what the one that is lent would."""
    roles = replicas.roles
    like = roles.decoding[loan.deployment]
    deployments = [name for name, other in roles.prefilling.items() if other == like]
    found = [connection for name in deployments for connection in replicas.of(name) if connection.is_ready]
    if is_adapter(replicas, model, loan):
        found = [connection for connection in found if model in connection.others]
    return [connection for connection in found if like[0] in connection.route.names]


def is_adapter(replicas: Replicas, model: str, loan: Loan) -> bool:
    """Whether `model` is a name that engines serve besides their deployment's model."""
    others = (connection.others for connection in replicas.of(loan.deployment))
    return not replicas.is_alias(model) and any(model in names for names in others)
