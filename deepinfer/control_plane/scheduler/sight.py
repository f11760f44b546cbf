"""A snapshot, looked up the way the scheduler asks: what is known of a node, and what may be concluded from it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

from deepinfer.control_plane.scheduler.fit import Offer, offer_of, same_engine
from deepinfer.control_plane.scheduler.hosts import with_hosts
from deepinfer.fleet import keys
from deepinfer.fleet.pipeline import hosts_name, is_hosts_name
from deepinfer.fleet.resources import Deployment, Node, NodeSettings, Phase, Placement
from deepinfer.fleet.rollout import Outcome, Rollout
from deepinfer.fleet.snapshot import Snapshot


@dataclass(frozen=True, slots=True)
class Outlook:
    """What the leader knows that does not lie in the store."""

    lost: frozenset[str] = frozenset()  # nodes that were away so long that they are not waited for
    answering: frozenset[tuple[str, int]] | None = None
    """Ids and epochs of the engines that answer this control plane's own gateway; None where it has not looked."""
    waited_for: frozenset[tuple[str, int]] = frozenset()  # they fell silent just now


@dataclass(frozen=True)
class Sight:
    """Questions about one snapshot; each table is built once."""

    fleet: Snapshot
    outlook: Outlook = Outlook()
    _compared: dict[tuple[str, int, int], bool] = field(default_factory=dict, compare=False)

    @cached_property
    def deployments(self) -> Mapping[str, Deployment]:
        """As they are to be run: a generation that was rolled back is not; hosts of stages are deployments too."""
        rollouts = {rollout.deployment: rollout for rollout in self.fleet.rollouts}
        asked = (effective(d, rollouts.get(d.name)) for d in self.fleet.deployments)
        return {d.name: d for d in with_hosts(asked)}

    @cached_property
    def verified(self) -> Mapping[str, Node]:
        """The nodes of which everything is known: alive, and all their placements readable."""
        return {node.name: node for node in self.fleet.nodes if node.name not in self.unreadable_on}

    @cached_property
    def offers(self) -> Mapping[str, Offer]:
        """What each verified node has to give, looked up once: it is asked for by every deployment."""
        return {node.name: offer_of(node) for node in self.verified.values()}

    @cached_property
    def settings(self) -> Mapping[str, NodeSettings]:
        return {settings.node: settings for settings in self.fleet.node_settings}

    @cached_property
    def unreadable_on(self) -> Mapping[str, str]:
        """Node -> the key of a placement on it that cannot be read, so that its devices are unknown."""
        return {key.split("/")[0]: f"{keys.PLACEMENTS}{key}" for key in self._unreadable(keys.PLACEMENTS)}

    @cached_property
    def unreadable_ids(self) -> frozenset[str]:
        """Placement ids that exist somewhere, whatever their records say."""
        return frozenset(key.partition("/")[2] for key in self._unreadable(keys.PLACEMENTS))

    @cached_property
    def unreadable_deployments(self) -> frozenset[str]:
        """Those whose records do not parse, and those of which it is not known what was rolled back."""
        names = (*self._unreadable(keys.DEPLOYMENTS), *self._unreadable(keys.ROLLOUTS))
        return frozenset((*names, *map(hosts_name, names)))

    @cached_property
    def unreadable_nodes(self) -> frozenset[str]:
        return frozenset(self._unreadable(keys.NODES))

    @cached_property
    def unreadable_settings(self) -> frozenset[str]:
        """Nodes that may be cordoned or drained."""
        return frozenset(self._unreadable(keys.NODE_SETTINGS))

    def unreadable_of(self, deployment: Deployment) -> int:
        """Replicas that exist somewhere, and of which nothing else is known."""
        return sum(name.startswith(f"{deployment.name}-{deployment.uid}-") for name in self.unreadable_ids)

    def is_gone(self, placement: Placement) -> bool:
        """Whether nothing of it runs: its agent was here, or never was, and tells no status of it in any epoch."""
        if (placement.node, placement.id) in self._told:
            return False
        return placement.node in self._alive or placement.node not in self._nodes_that_told

    def has_stopped(self, placement: Placement) -> bool:
        """Whether its agent ended it before leaving: the one thing that is certain of a node that is not there."""
        if placement.node in self._alive:
            return False
        status = self.fleet.status_of(placement)
        return status is not None and status.phase is Phase.STOPPED

    def is_lost(self, placement: Placement) -> bool:
        """Whether it is not waited for any longer. An engine that answers is not lost, wherever its agent is."""
        if not self.is_given_up(placement.node):
            return False
        return not self._answers(placement) and (placement.id, placement.epoch) not in self.outlook.waited_for

    def is_given_up(self, node: str) -> bool:
        return node in self.outlook.lost and node not in self._alive

    def is_ready(self, placement: Placement) -> bool:
        """Of a node that is not there, only an answer tells."""
        if placement.node not in self._alive:
            return self._answers(placement)
        status = self.fleet.status_of(placement)
        return status is not None and status.phase is Phase.READY

    def can_take_over(self, placement: Placement) -> bool:
        """Whether others may go because it is there: its agent calls it ready, and it answers who routes to it."""
        seen = self.outlook.answering is None or is_hosts_name(placement.deployment) or self._answers(placement)
        return self.is_ready(placement) and seen

    def _answers(self, placement: Placement) -> bool:
        return (placement.id, placement.epoch) in (self.outlook.answering or ())

    def is_outdated(self, placement: Placement, deployment: Deployment) -> bool:
        """Whether its engine is another one than the deployment, whose own it must be, asks for.

        Compared once for all replicas of a generation: one spec in thousands of copies takes a while to compare.
        """
        asked = (deployment.uid, deployment.generation, placement.generation)
        if asked not in self._compared:
            self._compared[asked] = not same_engine(placement.spec, deployment.spec)
        return self._compared[asked]

    def outdated_generations(self, placements: Iterable[Placement], deployment: Deployment) -> frozenset[int]:
        """Of these, which all are the deployment's own."""
        one_of_each = {placement.generation: placement for placement in placements}
        return frozenset(g for g, placement in one_of_each.items() if self.is_outdated(placement, deployment))

    def wants_it_elsewhere(self, placement: Placement) -> str:
        """Why it is to leave its node, whatever its spec; empty if it is not."""
        if why := self.must_leave(placement):
            return why
        return "a better place was asked for" if self.moved.get(placement.id) == placement.epoch else ""

    def must_leave(self, placement: Placement) -> str:
        """Why it cannot stay even if no better place is found."""
        if why := self._given_up_nodes.get(placement.node):
            return why
        deployment = self.deployments.get(placement.deployment)
        if deployment is None or not deployment.spec.node_selector:
            return ""
        node = self.verified.get(placement.node)
        missing = missing_label(deployment.spec.node_selector, node) if node else ""
        return f"node {placement.node} {missing}" if missing else ""

    @cached_property
    def newest_told(self) -> Mapping[str, int]:
        """Placement id -> the highest epoch that any node tells of."""
        found: dict[str, int] = {}
        for status in self.fleet.statuses:
            found[status.id] = max(status.epoch, found.get(status.id, 0))
        return found

    @cached_property
    def placed(self) -> Mapping[str, list[Placement]]:
        """By id, on every node."""
        found: dict[str, list[Placement]] = {}
        for placement in self.fleet.placements:
            found.setdefault(placement.id, []).append(placement)
        return found

    @cached_property
    def of_deployment(self) -> Mapping[str, list[Placement]]:
        """By the deployment's name, whatever its uid."""
        found: dict[str, list[Placement]] = {}
        for placement in self.fleet.placements:
            found.setdefault(placement.deployment, []).append(placement)
        return found

    @cached_property
    def moved(self) -> Mapping[str, int]:
        """Placement id -> the epoch that is to go elsewhere."""
        return {move.placement: move.epoch for move in self.fleet.moves}

    @cached_property
    def _given_up_nodes(self) -> Mapping[str, str]:
        """Node -> why nothing is to stay there."""
        leaving = {node.name: f"node {node.name} is leaving" for node in self.verified.values() if node.leaving}
        drained = {s.node: f"node {s.node} is drained" for s in self.fleet.node_settings if s.drain}
        return leaving | drained

    @cached_property
    def _alive(self) -> frozenset[str]:
        return frozenset(node.name for node in self.fleet.nodes)

    @cached_property
    def _told(self) -> frozenset[tuple[str, str]]:
        """Statuses by node and placement; an unreadable one is one."""
        readable = {(status.node, status.id) for status in self.fleet.statuses}
        parts = (key.partition("/") for key in self._unreadable(keys.STATUSES))
        return frozenset(readable | {(node, placement) for node, _, placement in parts})

    @cached_property
    def _nodes_that_told(self) -> frozenset[str]:
        return frozenset(node for node, _ in self._told) | self.unreadable_nodes

    def _unreadable(self, prefix: str) -> Iterable[str]:
        return [key.removeprefix(prefix) for key in sorted(self.fleet.unreadable) if key.startswith(prefix)]


def effective(deployment: Deployment, rollout: Rollout | None) -> Deployment:
    """What is to be run of it: where its newest generation was rolled back, the last good one, as often as asked."""
    if rollout is None or rollout.good is None or rollout.outcome is not Outcome.ROLLED_BACK:
        return deployment
    if (rollout.uid, rollout.generation) != (deployment.uid, deployment.generation):
        return deployment
    spec = rollout.good.spec.model_copy(update={"replicas": deployment.spec.replicas})
    return deployment.model_copy(update={"spec": spec, "generation": rollout.good.generation})


def missing_label(selector: Mapping[str, str], node: Node) -> str:
    """The first label that a node lacks, in words that follow its name; empty if it has all."""
    for key, value in sorted(selector.items()):
        if node.labels.get(key) != value:
            return f"has {key}={node.labels[key]}, not {value}" if key in node.labels else f"has no label {key}={value}"
    return ""
