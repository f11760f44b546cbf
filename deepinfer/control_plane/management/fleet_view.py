"""A snapshot of the fleet as the API shows it. Pure."""

from __future__ import annotations

from functools import cached_property

from deepinfer.control_plane.management.progress import progress
from deepinfer.control_plane.management.views import DeploymentView, NodeView, ReplicaView
from deepinfer.control_plane.scheduler.fit import same_engine
from deepinfer.control_plane.scheduler.retention import placement_id
from deepinfer.fleet.errors import DeploymentNotFound, ReplicaNotFound
from deepinfer.fleet.resources import Backend, Deployment, Intent, Node, Placement, ReplicaStatus
from deepinfer.fleet.snapshot import Snapshot


class FleetView:
    """Answers from one snapshot; each table is built once, so that a list costs one pass."""

    def __init__(self, fleet: Snapshot) -> None:
        self._fleet = fleet

    def deployments(self) -> tuple[DeploymentView, ...]:
        return tuple(self._deployment_view(deployment) for deployment in self._fleet.deployments)

    def deployment(self, name: str) -> DeploymentView:
        for deployment in self._fleet.deployments:
            if deployment.name == name:
                return self._deployment_view(deployment)
        raise DeploymentNotFound(f"There is no deployment {name}; `deepinfer get deployments` lists them.")

    def replicas(self) -> tuple[ReplicaView, ...]:
        return tuple(self._replica_view(placement) for placement in self._in_order(self._fleet.placements))

    def node_of(self, replica_id: str) -> Node | str:
        """The node of a replica: its record when it is connected, else its name. A serving copy goes before others."""
        found = sorted((p for p in self._fleet.placements if p.id == replica_id), key=lambda p: (p.intent, -p.epoch))
        if not found:
            raise ReplicaNotFound(f"There is no replica {replica_id}; `deepinfer get replicas` lists them.")
        name = next((p.node for p in found if p.intent is Intent.SERVE), found[0].node)
        return self._nodes.get(name, name)

    def nodes(self) -> tuple[NodeView, ...]:
        names = sorted(self._nodes.keys() | {placement.node for placement in self._fleet.placements})
        return tuple(self._node_view(name) for name in names)

    @cached_property
    def _nodes(self) -> dict[str, Node]:
        return {node.name: node for node in self._fleet.nodes}

    @cached_property
    def _statuses(self) -> dict[tuple[str, str, int], ReplicaStatus]:
        return {(status.node, status.id, status.epoch): status for status in self._fleet.statuses}

    @cached_property
    def _placements(self) -> dict[str, list[Placement]]:
        """By deployment."""
        found: dict[str, list[Placement]] = {}
        for placement in self._in_order(self._fleet.placements):
            found.setdefault(placement.deployment, []).append(placement)
        return found

    @staticmethod
    def _in_order(placements: tuple[Placement, ...]) -> list[Placement]:
        return sorted(placements, key=lambda p: (p.deployment, p.replica, p.id, p.node))

    def _deployment_view(self, deployment: Deployment) -> DeploymentView:
        replicas = [(p, self._replica_view(p)) for p in self._placements.get(deployment.name, [])]
        current = [view for placement, view in replicas if _is_current(placement, deployment)]
        outdated = [view for placement, view in replicas if not _is_current(placement, deployment)]
        refusal = next((r for r in self._fleet.refusals if r.deployment == deployment.name), None)
        return DeploymentView(
            **deployment.spec.model_dump(),
            **deployment.model_dump(exclude={"spec"}),
            status=progress(deployment, current, outdated, refusal),
            replica_list=tuple(view for _, view in replicas),
            refusals=refusal.reasons if refusal else {},
        )

    def _replica_view(self, placement: Placement) -> ReplicaView:
        status = self._statuses.get((placement.node, placement.id, placement.epoch))
        seen = status.model_dump(exclude={"id", "node", "epoch"}) if status else {}
        told, unknown = seen.get("message", ""), self._runtime_trouble(placement)
        if unknown not in told:
            seen["message"] = "; ".join(filter(None, [told, unknown]))
        return ReplicaView(**placement.model_dump(exclude={"spec"}), **seen, node_alive=placement.node in self._nodes)

    def _runtime_trouble(self, placement: Placement) -> str:
        """Of a replica whose container goes on while nobody can ask about it."""
        node = self._nodes.get(placement.node)
        if placement.spec.backend is not Backend.DOCKER or node is None or node.containers is None:
            return ""
        return f"RuntimeUnreachable: {node.containers.trouble}" if node.containers.trouble else ""

    def _node_view(self, name: str) -> NodeView:
        replicas = tuple(p.id for p in self._in_order(self._fleet.placements) if p.node == name)
        node = self._nodes.get(name)
        offers = node.model_dump(exclude={"name", "instance"}) if node else {}
        return NodeView(name=name, alive=node is not None, replicas=replicas, **offers)


def _is_current(placement: Placement, deployment: Deployment) -> bool:
    is_its_own = placement.id == placement_id(deployment, placement.replica)
    return placement.intent is Intent.SERVE and is_its_own and same_engine(placement.spec, deployment.spec)
