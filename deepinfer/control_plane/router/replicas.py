"""The router's live view of the fleet: which engines there are, and which of them are ready for a model right now.

What should be reachable comes from the store (`update`, level-triggered: the same snapshot twice changes nothing); what
is ready comes from the engines themselves. While the store is away nothing changes here, so traffic goes on.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import TracebackType

from deepinfer.control_plane.router.candidate import Candidate, Seen
from deepinfer.control_plane.router.connection import Connection
from deepinfer.control_plane.router.health import slowed
from deepinfer.control_plane.router.loan import Loan
from deepinfer.control_plane.router.news import about, changed_placements, told_anew
from deepinfer.control_plane.router.readiness import (
    Weights,
    created_seconds,
    deployments_by_name,
    waits_for,
    weights_by_alias,
)
from deepinfer.control_plane.router.routes import Route, newest_epochs, wanted_routes
from deepinfer.control_plane.router.split import NewGeneration, Split, rolling
from deepinfer.fleet import keys
from deepinfer.fleet.resources import Deployment, Intent, Phase, Placement
from deepinfer.fleet.snapshot import Snapshot


def nobody_listens() -> None:
    """What nobody waits for."""


def nobody_counts(placement: str) -> None:
    """What nobody counts."""


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A name that a request's "model" may use."""

    name: str
    created: int  # seconds since 1970
    ready: bool
    parent: str | None = None  # the deployment whose engines serve it besides their own names, as adapters are
    root: str | None = None  # of an alias: the deployment that gets most of its requests


class Replicas:
    """Used as `async with Replicas() as replicas`; the block's end closes every connection."""

    def __init__(self) -> None:
        self.has_view = False  # of the store, once at least
        self.when_turned: Callable[[], None] = nobody_listens  # called when an engine becomes ready or is so no longer
        self.when_eased: Callable[[], None] = nobody_listens  # called when there may be room where there was none
        self.when_ejected: Callable[[str], None] = nobody_counts  # called with a replica that is left out from now on
        self._fleet = Snapshot()
        self._deployments: dict[str, list[Deployment]] = {}
        self._connections: dict[str, Connection] = {}  # by placement id: one epoch at a time
        self._by_name: dict[str, tuple[Connection, ...]] = {}
        self._ready: dict[str, tuple[Connection, ...]] = {}  # of these by name, until any turns or a name changes
        self._parents: dict[str, str] = {}  # names that only engines told -> the deployment
        self._aliases: dict[str, Weights] = {}
        self._rolling: dict[str, NewGeneration] = {}  # those of which the newest generation is to get a share
        self._turn = 0
        self._tasks = asyncio.TaskGroup()
        self._running: dict[asyncio.Task[None], Connection] = {}  # retired ones too, until what runs there has ended

    async def __aenter__(self) -> Replicas:
        await self._tasks.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for task in self._running:
            task.cancel()
        await self._tasks.__aexit__(kind, error, trace)

    def cut_off(self, message: str) -> None:
        """Every running answer fails with this message, and nobody is a candidate any more."""
        for connection in self._running.values():
            connection.cut_off(message)
        self._ready.clear()

    def update(self, fleet: Snapshot) -> None:
        """Take over what the store says. Call it after every reading."""
        changed = changed_placements(self._fleet, fleet)
        known = {p: self._connections[p].route for p in changed if p in self._connections}
        wanted = wanted_routes(about(fleet, changed), known)
        for placement in sorted(changed):
            self._reroute(placement, known.get(placement), wanted.get(placement))
        for status in told_anew(self._fleet, fleet):
            if status.id in self._connections:
                self._connections[status.id].wake()
        before = self._fleet
        records_changed = (
            before.deployments is not fleet.deployments
            or before.aliases is not fleet.aliases
            or before.unreadable != fleet.unreadable
        )
        names_changed = known != wanted or records_changed or not self.has_view
        self._fleet, self.has_view = fleet, True
        if names_changed:
            self._deployments = deployments_by_name(fleet)
            self._aliases = weights_by_alias(fleet, self._aliases)
            self._take_names()
        if records_changed or before.placements is not fleet.placements or before.rollouts is not fleet.rollouts:
            self._rolling = rolling(fleet)

    def answering(self) -> frozenset[tuple[str, int]]:
        """Placement id and epoch of every engine that says, from here, that it is ready."""
        ready = (connection.route for connection in self._connections.values() if connection.is_ready)
        return frozenset((route.placement, route.epoch) for route in ready)

    def candidates(self, model: str) -> tuple[Candidate, ...]:
        """The replicas that could answer a request for `model` now."""
        return tuple([connection.candidate() for connection in self.ready(model)])

    def ready(self, model: str) -> tuple[Connection, ...]:
        """The same, as what they are: for the choice alone, which every request makes."""
        known = self._ready.get(model)
        if known is None:
            known = tuple([connection for connection in self._by_name.get(model, ()) if connection.is_ready])
            if model in self._by_name:
                self._ready[model] = known
        return known

    def ejected(self) -> Iterator[str]:
        """Replicas that are left out for now."""
        return (placement for placement, connection in self._connections.items() if connection.is_ejected)

    def is_alias(self, model: str) -> bool:
        """Whether its engines know it by their deployment's name only."""
        return model in self._aliases

    def split(self, model: str) -> Split | None:
        """Whose turn the next request for `model` is; None where requests go to whoever is least busy."""
        if not self._rolling and model not in self._aliases:
            return None
        return Split(self._turn, self._aliases.get(model, {}), self._rolling)

    def lend(self, candidate: Seen, work: float = 1.0) -> Loan:
        """A candidate for one request. Ask for it without awaiting anything after `candidates`."""
        self._turn += 1
        return self._connections[candidate.placement].lend(self._turn, work)

    def renamed(self) -> None:
        """An engine serves other names than before."""
        self._take_names()

    def turned(self) -> None:
        """An engine is ready, or is so no longer."""
        self._ready.clear()
        self.when_turned()
        self.when_eased()

    def eased(self) -> None:
        """There may be room where there was none."""
        self.when_eased()

    def ejects(self, placement: str) -> None:
        """It failed, or slowed down."""
        self.when_ejected(placement)

    def paced(self, connection: Connection) -> None:
        """An engine told how fast it makes tokens."""
        peers = {peer for name in connection.route.names for peer in self._by_name.get(name, ())}
        if slowed(connection.pace, (peer.pace for peer in peers if peer is not connection and peer.is_ready)):
            connection.slowed()

    def knows(self, model: str) -> bool:
        """Whether anything is deployed under that name, ready or not."""
        if model in self._deployments or model in self._by_name:  # where aliases are too
            return True
        return keys.deployment(model) in self._fleet.unreadable

    def placed(self) -> frozenset[str]:
        """The id of every placement there is."""
        return frozenset(placement.id for placement in self._fleet.placements)

    def models(self) -> tuple[ServedModel, ...]:
        """Every name deployed, ready or not, the oldest first; and what their engines serve besides."""
        served = [
            ServedModel(name, min(map(created_seconds, deployments)), bool(self.candidates(name)))
            for name, deployments in self._deployments.items()
            if name not in self._aliases
        ]
        created = {model.name: model.created for model in served}
        served += (
            ServedModel(name, created.get(parent, 0), bool(self.candidates(name)), parent)
            for name, parent in self._parents.items()
        )
        served += (
            ServedModel(
                alias.name,
                created_seconds(alias),
                bool(self.candidates(alias.name)),
                root=next(iter(self._aliases[alias.name])),
            )
            for alias in self._fleet.aliases
            if alias.name in self._aliases
        )
        return tuple(sorted(served, key=lambda model: (model.created, model.name)))

    def waits_for(self, model: str) -> str:
        """Why a known model has no candidate, in a sentence."""
        troubles = {placement: connection.trouble for placement, connection in self._connections.items()}
        targets = self._aliases.get(model, (self._parents.get(model, model),))
        meant = [deployment for target in targets for deployment in self._deployments.get(target, [])]
        if not meant and model in self._aliases:
            return f"{', '.join(targets)} is not deployed; `deepinfer alias set` points it elsewhere"
        return waits_for(meant, self._fleet, troubles)

    def counts(self) -> Counter[tuple[str, str]]:
        """(deployment, state) -> how many replicas, as seen from here."""
        serving = (p for p in newest_epochs(self._fleet).values() if p.intent is Intent.SERVE)
        return Counter((p.deployment, self._state(p)) for p in serving)

    def _reroute(self, placement: str, old: Route | None, new: Route | None) -> None:
        if old == new:
            return
        if old is not None:
            self._connections.pop(placement).retire()
        if new is not None:
            connection = self._connections[placement] = Connection(new, self)
            task = self._tasks.create_task(connection.run(), name=f"connection to {placement}")
            self._running[task] = connection
            task.add_done_callback(self._running.pop)

    def _take_names(self) -> None:
        """A deployment's name and an alias mean what they say, whatever models and engines are called so too."""
        found: dict[str, list[Connection]] = {}
        of_deployment: dict[str, list[Connection]] = {}
        parents: dict[str, str] = {}
        for connection in self._connections.values():
            deployment = connection.route.deployment
            others = [name for name in connection.others if name not in self._deployments]
            for name in (*connection.route.names, *others):
                found.setdefault(name, []).append(connection)
            for name in others:
                parents.setdefault(name, deployment)
            of_deployment.setdefault(deployment, []).append(connection)
        for alias, weights in self._aliases.items():
            found[alias] = [connection for name in weights for connection in of_deployment.get(name, ())]
            parents.pop(alias, None)
        self._by_name = {name: tuple(connections) for name, connections in found.items()}
        self._ready.clear()
        self._parents = parents

    def _state(self, placement: Placement) -> str:
        connection = self._connections.get(placement.id)
        if connection is not None and connection.is_ready:
            return "ready"
        status = self._fleet.status_of(placement)
        if status is None:
            return "pending"
        return "unreachable" if status.phase is Phase.READY else status.phase.value
