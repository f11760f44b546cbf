"""The router's live view of the fleet: which engines there are, and which of them are ready for a model right now.

What should be reachable comes from the store (`update`, level-triggered: the same snapshot twice changes nothing); what
is ready comes from the engines themselves. While the store is away nothing changes here, so traffic goes on.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType

from deepinfer.control_plane.prompts.readers import PromptReaders
from deepinfer.control_plane.router.candidate import Candidate
from deepinfer.control_plane.router.connection import Connection
from deepinfer.control_plane.router.health import slowed
from deepinfer.control_plane.router.kv_index import KvIndex
from deepinfer.control_plane.router.loan import Loan
from deepinfer.control_plane.router.news import about, changed_placements, deposed, told_anew
from deepinfer.control_plane.router.outlook import Outlook
from deepinfer.control_plane.router.policies import take_policies
from deepinfer.control_plane.router.prompt_reading import PromptReading
from deepinfer.control_plane.router.readiness import (
    Weights,
    deployments_by_name,
    waits_for,
    weights_by_alias,
)
from deepinfer.control_plane.router.roles import Roles, roles_in
from deepinfer.control_plane.router.router import Choice
from deepinfer.control_plane.router.routes import Route, newest_epochs, wanted_routes
from deepinfer.control_plane.router.served_models import ServedModel, served_models
from deepinfer.control_plane.router.split import NewGeneration, Split, rolling
from deepinfer.fleet import keys
from deepinfer.fleet.resources import Deployment, Intent, Phase, Placement
from deepinfer.fleet.snapshot import Snapshot
from deepinfer.fleet.spec import RoutingPolicy


def nobody_listens() -> None:
    """What nobody waits for."""


def nobody_counts(placement: str) -> None:
    """What nobody counts."""


class Replicas:
    """Used as `async with Replicas() as replicas`; the block's end closes every connection."""

    def __init__(self) -> None:
        self.has_view = False  # of the store, once at least
        self.roles = Roles()
        self.when_turned: Callable[[], None] = nobody_listens  # called when an engine becomes ready or is so no longer
        self.when_eased: Callable[[], None] = nobody_listens  # called when there may be room where there was none
        self.when_ejected: Callable[[str], None] = nobody_counts  # called with a replica that is left out from now on
        self._fleet = Snapshot()
        self._deployments: dict[str, list[Deployment]] = {}
        self._connections: dict[str, Connection] = {}  # by placement id: one epoch at a time
        self._by_name: dict[str, tuple[Connection, ...]] = {}
        self._ready: dict[str, tuple[Connection, ...]] = {}  # of these by name, until any turns or a name changes
        self._parents: dict[str, str] = {}  # names that only engines told -> the deployment
        self._of_deployment: dict[str, list[Connection]] = {}
        self._aliases: dict[str, Weights] = {}
        self._indexes: dict[str, KvIndex] = {}  # by deployment
        self._readers = PromptReaders()
        self._rolling: dict[str, NewGeneration] = {}  # those of which the newest generation is to get a share
        self._turn = 0
        self._turned = asyncio.Event()  # set once, then another one
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
        for placement in deposed(self._fleet, fleet) & self._connections.keys():
            self._connections[placement].cut_off("Another process is the head of this replica now.")
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
            self.roles = roles_in(fleet, self.roles)
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
            prefilling = self.roles.prefilling
            named = self._by_name.get(model, ())
            known = tuple([c for c in named if c.is_ready and c.deployment not in prefilling])
            if model in self._by_name:
                self._ready[model] = known
        return known

    def of(self, deployment: str) -> Sequence[Connection]:
        """All there are of a deployment, ready or not."""
        return self._of_deployment.get(deployment, ())

    def only_prefills(self, model: str) -> bool:
        """Whether `model` names a deployment that answers nobody, and nothing else."""
        meant = self._deployments.get(model, ())
        return bool(meant) and all(d.name in self.roles.prefilling and d.spec.model != model for d in meant)

    def ejected(self) -> Iterator[str]:
        """Replicas that are left out for now."""
        return (placement for placement, connection in self._connections.items() if connection.is_ejected)

    def prompts(self, model: str) -> PromptReading | None:
        """How prompts for `model` are read; None where no choice depends on it."""
        ready = self.ready(model)
        if len(ready) < 2:
            return None
        reading = [connection.prompts for connection in ready if connection.wants_contents]
        return next((one for one in reading if one.reader is not None), reading[0]) if reading else None

    def outlooks(self) -> Iterator[Outlook]:
        """What is known of each engine."""
        return (connection.outlook for connection in self._connections.values())

    def is_alias(self, model: str) -> bool:
        """Whether its engines know it by their deployment's name only."""
        return model in self._aliases

    def split(self, model: str) -> Split | None:
        """Whose turn the next request for `model` is; None where requests go to whoever is least busy."""
        if not self._rolling and model not in self._aliases:
            return None
        return Split(self._turn, self._aliases.get(model, {}), self._rolling)

    @property
    def turn(self) -> int:
        """The number of the next request."""
        return self._turn

    def lend(self, choice: Choice[Connection], work: float = 1.0) -> Loan:
        """The chosen replica for one request. Ask for it without awaiting anything after `ready`."""
        self._turn += 1
        return choice.candidate.lend(choice, self._turn, work)

    def renamed(self) -> None:
        """An engine serves other names than before."""
        self._take_names()

    def turned(self) -> None:
        """An engine is ready, or is so no longer."""
        self._ready.clear()
        self._turned.set()
        self._turned = asyncio.Event()
        self.when_turned()
        self.when_eased()

    async def next_turn(self) -> None:
        """Returns when an engine becomes ready or is so no longer."""
        await self._turned.wait()

    def is_in_stages(self, model: str) -> bool:
        """Its replicas are of several processes, any of which may become the one that takes requests."""
        return any(deployment.spec.pipeline is not None for deployment in self._deployments.get(model, ()))

    def eased(self) -> None:
        """There may be room where there was none."""
        self.when_eased()

    def ejects(self, placement: str) -> None:
        """It failed, or slowed down."""
        self.when_ejected(placement)

    def paced(self, connection: Connection) -> None:
        """An engine told how fast it makes tokens. What is slow is dear: where costs decide, that is enough."""
        if connection.policy is RoutingPolicy.KV:
            return
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
        """As they are listed."""
        shown = {
            name: meant
            for name, meant in self._deployments.items()
            if name not in self._aliases and not self.only_prefills(name)
        }
        aliases = ((a, self._aliases[a.name]) for a in self._fleet.aliases if a.name in self._aliases)
        return served_models(shown, self._parents, aliases, lambda name: bool(self.ready(name)))

    def waits_for(self, model: str) -> str:
        """Why a known model has no candidate, in a sentence."""
        troubles = {placement: connection.trouble for placement, connection in self._connections.items()}
        targets = self._aliases.get(model, (self._parents.get(model, model),))
        meant = [deployment for target in targets for deployment in self._deployments.get(target, [])]
        if not meant and model in self._aliases:
            return f"{', '.join(targets)} is not deployed; `deepinfer alias set` points it elsewhere"
        answering = [deployment for deployment in meant if deployment.name not in self.roles.prefilling]
        if meant and not answering:
            return f"{meant[0].name} only prefills; deploy the model once more, with the role decode or both"
        return waits_for(answering, self._fleet, troubles)

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
            index = self._indexes.setdefault(new.deployment, KvIndex())
            connection = self._connections[placement] = Connection(new, self, index.shelf(), self._readers)
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
        self._of_deployment = of_deployment
        self._ready.clear()
        self._parents = parents
        self._indexes = {name: index for name, index in self._indexes.items() if name in of_deployment}
        take_policies(self._connections.values(), self._fleet, self._by_name)

    def _state(self, placement: Placement) -> str:
        connection = self._connections.get(placement.id)
        if connection is not None and connection.is_ready:
            return "ready"
        status = self._fleet.status_of(placement)
        if status is None:
            return "pending"
        return "unreachable" if status.phase is Phase.READY else status.phase.value
