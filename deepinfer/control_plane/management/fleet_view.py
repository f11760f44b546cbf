"""A snapshot of the fleet as the API shows it. Pure.

Views are made of merged dicts, not of keywords: two records may have a field of one name that a newer version added.
"""

from __future__ import annotations

from functools import cached_property

from deepinfer.control_plane.management.node_state import node_state
from deepinfer.control_plane.management.progress import Stage, progress
from deepinfer.control_plane.management.scheduling_views import RolloutView
from deepinfer.control_plane.management.views import AbsenceView, DeploymentView, NodeView, ReplicaView
from deepinfer.control_plane.openai_errors import NodeNotFound, UnreadableDeployment
from deepinfer.control_plane.scheduler.fit import same_engine
from deepinfer.control_plane.scheduler.identity import placement_id
from deepinfer.control_plane.scheduler.sight import effective
from deepinfer.fleet import keys
from deepinfer.fleet.conditions import Condition, Conditions
from deepinfer.fleet.errors import DeploymentNotFound, ReplicaNotFound
from deepinfer.fleet.resources import (
    Absence,
    Deployment,
    Intent,
    Node,
    NodeSettings,
    Phase,
    Placement,
    Refusal,
    ReplicaStatus,
)
from deepinfer.fleet.rollout import Rollout
from deepinfer.fleet.snapshot import Snapshot
from deepinfer.fleet.spec import Backend, ReplicaRole


class FleetView:
    """Answers from one snapshot; each table is built once, so that a list costs one pass."""

    def __init__(self, fleet: Snapshot) -> None:
        self._fleet = fleet

    def deployments(self) -> tuple[DeploymentView, ...]:
        return tuple(self._deployment_view(deployment) for deployment in self._fleet.deployments)

    def deployment(self, name: str) -> DeploymentView:
        return self._deployment_view(self._deployment(name))

    def rollout(self, name: str) -> RolloutView:
        deployment = self._deployment(name)
        stage, rollout = self._stage(deployment), self._rollout(deployment)
        of_newest = [p for p in self._placements.get(name, []) if _runs(p, deployment)]
        phases = [self._replica_view(placement).phase for placement in of_newest]
        return RolloutView(
            name=name,
            generation=deployment.generation,
            outcome=stage.outcome,
            reason=stage.rollout.reason if stage.rollout else "",
            good_generation=rollout.good.generation if rollout and rollout.good else None,
            wanted=deployment.spec.replicas,
            updated=len(of_newest),
            ready=phases.count(Phase.READY),
            old=len(self._placements.get(name, [])) - len(of_newest),
            message=progress(stage).message,
            conditions=self._conditions_of(deployment),
        )

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
        return tuple(self._node_view(name) for name in self._node_names)

    def node(self, name: str) -> NodeView:
        """Raises `NodeNotFound`."""
        if name not in self._node_names:
            there_are = ", ".join(self._node_names) or "none yet"
            raise NodeNotFound(f"There is no node {name!r}; the nodes are: {there_are}.")
        return self._node_view(name)

    def is_connected(self, name: str) -> bool:
        """A record that cannot be read is one."""
        return name in self._nodes or keys.node(name) in self._fleet.unreadable

    def _deployment(self, name: str) -> Deployment:
        for deployment in self._fleet.deployments:
            if deployment.name == name:
                return deployment
        if keys.deployment(name) in self._fleet.unreadable:
            raise UnreadableDeployment(f"The record of {name} cannot be read by this version; delete it or repair it.")
        raise DeploymentNotFound(f"There is no deployment {name}; `deepinfer get deployments` lists them.")

    @cached_property
    def _nodes(self) -> dict[str, Node]:
        return {node.name: node for node in self._fleet.nodes}

    @cached_property
    def _node_names(self) -> list[str]:
        """Also those that are not connected, as long as anything is known of them."""
        fleet = self._fleet
        unreadable = {key.removeprefix(keys.NODES) for key in fleet.unreadable if key.startswith(keys.NODES)}
        placed = {placement.node for placement in fleet.placements} | {status.node for status in fleet.statuses}
        return sorted({*self._nodes, *unreadable, *placed, *self._settings, *self._absences})

    @cached_property
    def _settings(self) -> dict[str, NodeSettings]:
        return {settings.node: settings for settings in self._fleet.node_settings}

    @cached_property
    def _absences(self) -> dict[str, Absence]:
        return {absence.node: absence for absence in self._fleet.absences}

    @cached_property
    def _rollouts(self) -> dict[str, Rollout]:
        return {rollout.deployment: rollout for rollout in self._fleet.rollouts}

    @cached_property
    def _conditions(self) -> dict[str, Conditions]:
        return {conditions.deployment: conditions for conditions in self._fleet.conditions}

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

    @cached_property
    def _replicas_on(self) -> dict[str, list[str]]:
        """Ids by node."""
        found: dict[str, list[str]] = {}
        for placement in self._in_order(self._fleet.placements):
            found.setdefault(placement.node, []).append(placement.id)
        return found

    @cached_property
    def _roles(self) -> dict[str, ReplicaRole]:
        return {deployment.name: deployment.spec.role for deployment in self._fleet.deployments}

    @cached_property
    def _refusals(self) -> dict[str, Refusal]:
        """By deployment."""
        return {refusal.deployment: refusal for refusal in self._fleet.refusals}

    @staticmethod
    def _in_order(placements: tuple[Placement, ...]) -> list[Placement]:
        return sorted(placements, key=lambda p: (p.deployment, p.replica, p.id, p.node))

    def _rollout(self, deployment: Deployment) -> Rollout | None:
        rollout = self._rollouts.get(deployment.name)
        return rollout if rollout and rollout.uid == deployment.uid else None

    def _stage(self, deployment: Deployment) -> Stage:
        rollout = self._rollout(deployment)
        running = effective(deployment, rollout)
        replicas = [(p, self._replica_view(p)) for p in self._placements.get(deployment.name, [])]
        return Stage(
            deployment=deployment,
            current=[view for placement, view in replicas if _runs(placement, running)],
            outdated=[view for placement, view in replicas if not _runs(placement, running)],
            refusal=self._refusals.get(deployment.name),
            rollout=rollout if rollout and rollout.generation == deployment.generation else None,
        )

    def _deployment_view(self, deployment: Deployment) -> DeploymentView:
        stage = self._stage(deployment)
        shown = {
            "status": progress(stage),
            "replica_list": tuple(map(self._replica_view, self._placements.get(deployment.name, []))),
            "refusals": stage.refusal.reasons if stage.refusal else {},
            "conditions": self._conditions_of(deployment),
        }
        return DeploymentView(**deployment.spec.model_dump() | deployment.model_dump(exclude={"spec"}) | shown)

    def _conditions_of(self, deployment: Deployment) -> tuple[Condition, ...]:
        found = self._conditions.get(deployment.name)
        return found.conditions if found and found.uid == deployment.uid else ()

    def _replica_view(self, placement: Placement) -> ReplicaView:
        status = self._statuses.get((placement.node, placement.id, placement.epoch))
        seen = status.model_dump(exclude={"id", "node", "epoch"}) if status else {}
        told, unknown = seen.get("message", ""), self._runtime_trouble(placement)
        if unknown not in told:
            seen["message"] = "; ".join(filter(None, [told, unknown]))
        seen["node_alive"] = placement.node in self._nodes
        seen["role"] = self._roles.get(placement.deployment, ReplicaRole.BOTH)
        return ReplicaView(**placement.model_dump(exclude={"spec"}) | seen)

    def _runtime_trouble(self, placement: Placement) -> str:
        """Of a replica whose container goes on while nobody can ask about it."""
        node = self._nodes.get(placement.node)
        if placement.spec.backend is not Backend.DOCKER or node is None or node.containers is None:
            return ""
        return f"RuntimeUnreachable: {node.containers.trouble}" if node.containers.trouble else ""

    def _node_view(self, name: str) -> NodeView:
        node, absence = self._nodes.get(name), self._absences.get(name)
        offers = node.model_dump(exclude={"name", "instance"}) if node else {}
        shown = {
            "name": name,
            "alive": node is not None,
            "state": node_state(node, self._settings.get(name), absence),
            "absence": AbsenceView(since=absence.since, held=absence.held) if absence and node is None else None,
            "replicas": tuple(self._replicas_on.get(name, ())),
        }
        return NodeView(**offers | shown)


def _runs(placement: Placement, deployment: Deployment) -> bool:
    is_its_own = placement.id == placement_id(deployment, placement.replica)
    return placement.intent is Intent.SERVE and is_its_own and same_engine(placement.spec, deployment.spec)
