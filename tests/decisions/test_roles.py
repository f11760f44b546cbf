"""Who prefills and who decodes, by the deployments' records."""

from __future__ import annotations

from deepinfer.control_plane.router.roles import Roles, roles_in
from deepinfer.fleet import keys
from deepinfer.fleet.resources import Deployment
from deepinfer.fleet.snapshot import Snapshot
from deepinfer.fleet.spec import ReplicaRole
from tests.fleet_values import deployment


def of_role(name: str, role: ReplicaRole) -> Deployment:
    made = deployment(name)
    return made.model_copy(update={"spec": made.spec.model_copy(update={"role": role})})


def test_a_record_that_cannot_be_read_keeps_its_role_and_one_that_is_gone_has_none() -> None:
    fleet = Snapshot(deployments=(of_role("p", ReplicaRole.PREFILL), of_role("d", ReplicaRole.DECODE), deployment("b")))
    like = ("org/model", "vllm")
    known = roles_in(fleet, Roles())
    assert known == Roles({"p": like}, {"d": like})
    garbled = Snapshot(unreadable={keys.deployment("p"): "not JSON"})
    assert roles_in(garbled, known) == Roles({"p": like}, {})
