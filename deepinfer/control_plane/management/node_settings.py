"""What people decided about nodes, in the store: the only writer of these keys."""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import ValidationError

from deepinfer.control_plane.management.fleet_view import FleetView
from deepinfer.control_plane.management.retrying import retrying
from deepinfer.control_plane.openai_errors import NodeInUse
from deepinfer.fleet import keys
from deepinfer.fleet.mirror import Mirror
from deepinfer.fleet.resources import Intent, NodeSettings
from deepinfer.fleet.snapshot import Snapshot, snapshot_of


@dataclass(frozen=True)
class Decision:
    """What becomes of the settings; None leaves one as it is."""

    cordoned: bool | None = None
    drain: bool | None = None
    lost: bool | None = None

    def applied_to(self, settings: NodeSettings) -> NodeSettings:
        decided = {"cordoned": self.cordoned, "drain": self.drain, "lost": self.lost}
        return settings.model_copy(update={field: value for field, value in decided.items() if value is not None})


CORDON = Decision(cordoned=True)
UNCORDON = Decision(cordoned=False, drain=False, lost=False)
DRAIN = Decision(cordoned=True, drain=True)
LOST = Decision(cordoned=True, lost=True)


class Nodes:
    """Nodes, as far as people decide about them."""

    def __init__(self, store: Mirror) -> None:
        self._store = store

    async def decide(self, name: str, decision: Decision) -> None:
        """Raises `NodeNotFound`; `NodeInUse` for one that is called lost although it is connected."""
        fleet = FleetView(await self._store.latest())
        fleet.node(name)
        if decision.lost and fleet.is_connected(name):
            raise NodeInUse(f"Node {name} is connected, so it is not lost; `deepinfer drain {name}` empties it.")

        async def once() -> None:
            reading = await self._store.read(keys.node_settings(name))
            before = reading.values.get(keys.node_settings(name))
            wanted = decision.applied_to(_settings(name, before))
            value = None if wanted == NodeSettings(node=name) else wanted.to_json()
            if value != before:
                await self._store.commit({keys.node_settings(name): value}, if_unchanged=reading)

        await retrying(once)

    async def forget(self, name: str) -> None:
        """Nothing of it is waited for or fenced any longer. Raises `NodeNotFound` and `NodeInUse`."""
        FleetView(await self._store.latest()).node(name)
        reading = await self._store.read(keys.FLEET)
        _refuse_what_may_return(name, snapshot_of(reading.values))
        statuses = [key for key in reading.entries if key.startswith(keys.statuses(name))]
        gone = dict.fromkeys([*statuses, keys.node_settings(name)])
        await self._store.commit(gone, if_unchanged=reading, also_unchanged={keys.node(name): 0})


def _settings(name: str, value: bytes | None) -> NodeSettings:
    """A person's word replaces what cannot be read."""
    try:
        return NodeSettings(node=name) if value is None else NodeSettings.model_validate_json(value)
    except ValidationError:
        return NodeSettings(node=name)


def _refuse_what_may_return(name: str, fleet: Snapshot) -> None:
    if FleetView(fleet).is_connected(name):
        raise NodeInUse(f"Node {name} is connected; drain it and stop its worker first.")
    placed = [placement for placement in fleet.placements if placement.node == name]
    told = [status for status in fleet.statuses if status.node == name]
    if (placed or told) and FleetView(fleet).node(name).state != "lost":
        raise NodeInUse(f"Node {name} is away and may come back; `deepinfer node lost {name}` says that it will not.")
    serving = [placement.id for placement in placed if placement.intent is Intent.SERVE]
    if serving:
        raise NodeInUse(f"{', '.join(serving)} of node {name} still answers or is being replaced; try again soon.")
