"""What must hold whatever is broken; every row runs inside `standing`, which watches all of it and checks in the end.

1. A client that tries again within its deadline gets an answer, and it is the right one: this model's, this prompt's.
2. A stream ends whole with [DONE], or with an error that says so; it is never cut without a word.
3. A placement has one living engine at most, and a device one placement.
4. Engines that the row does not break keep their process, their placement and their endpoint.
5. Placements and refusals are written while somebody leads, and by one leader after the other: epochs never fall.
6. Afterwards what is seen is what is wanted, within the row's bound.
7. No process, lease or watcher is left; `FaultFleet.close` checks it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import groupby

from deepinfer.fleet import keys
from deepinfer.fleet.resources import Intent, Phase, Placement
from deepinfer.fleet.snapshot import Snapshot, snapshot_of
from tests.alive import is_alive
from tests.faults import etcd_reading
from tests.faults.etcd_reading import Event
from tests.faults.fault_fleet import FaultFleet
from tests.faults.sightings import Sightings
from tests.faults.traffic import Traffic
from tests.fleet import eventually

SETTLED_SECONDS = 20.0


@contextmanager
def standing(
    fleet: FaultFleet, model: str = "chat", *, breaks: str = "", settles_in: float = SETTLED_SECONDS
) -> Iterator[Traffic]:
    """Traffic to `model` while the block breaks something: a deployment's engines at most, and then it is named."""
    urls = [gateway.url for gateway in fleet.gateways]
    with ExitStack() as stack:
        sightings = stack.enter_context(Sightings(fleet.home))
        assert sightings.pids, "no engine is seen, so nothing that is said of engines would be looked at"
        kept = {p: list(pids) for p, pids in sightings.pids.items() if not breaks or not p.startswith(f"{breaks}-")}
        since = etcd_reading.history(fleet.etcd.endpoint)[-1].revision
        traffic = stack.enter_context(Traffic(urls, model))
        yield traffic
        eventually(lambda: not unsettled(fleet.now()), settles_in)
        if not traffic.tally.failed:
            traffic.more()
    tally = traffic.tally
    assert not tally.violations, tally.violations
    assert not tally.failed, tally.failed
    assert not sightings.doubles, sightings.doubles
    events = etcd_reading.history(fleet.etcd.endpoint)
    check_history(events)
    assert {placement: sightings.pids[placement] for placement in kept} == kept
    check_kept([event for event in events if event.revision > since], kept)


def unsettled(fleet: Snapshot) -> list[str]:
    """How what is seen differs from what is wanted."""
    placed = [(placement.deployment, placement.intent) for placement in fleet.placements]
    known = {(placement.node, placement.id, placement.epoch) for placement in fleet.placements}
    return [
        *(f"{key} is unreadable" for key in fleet.unreadable),
        *(
            f"{wanted.name} has another number of placements"
            for wanted in fleet.deployments
            if placed.count((wanted.name, Intent.SERVE)) != wanted.spec.replicas
        ),
        *(f"{p.id} is not as wanted" for p in fleet.placements if not _serves(p, fleet)),
        *(f"{s.id} has a status only" for s in fleet.statuses if (s.node, s.id, s.epoch) not in known),
    ]


def _serves(placement: Placement, fleet: Snapshot) -> bool:
    status = fleet.status_of(placement)
    is_wanted = placement.intent is Intent.SERVE and placement.node in {node.name for node in fleet.nodes}
    return is_wanted and status is not None and status.phase is Phase.READY and is_alive(status.pid or 0)


def check_kept(events: Sequence[Event], placements: Collection[str]) -> None:
    """None of them was written again; their agents told of them, if anything, that they are ready where they were."""
    for event in events:
        if event.key.rpartition("/")[2] in placements:
            assert not event.key.startswith(keys.PLACEMENTS), f"{event.key} was moved or written again: {event.value!r}"
            told = snapshot_of({event.key: event.value or b""}).statuses
            assert told and told[0].endpoint and not told[0].restarts, f"{event.key} became {event.value!r}"


def check_history(events: Sequence[Event]) -> None:
    """Plays it back, revision by revision."""
    epochs: dict[str, int] = {}
    leader: bytes | None = None
    for event in events:
        if event.key == keys.LEADER:
            assert None in (leader, event.value), f"two leaders at revision {event.revision}"
            leader = event.value
        elif event.key.startswith((keys.PLACEMENTS, keys.REFUSALS)):
            assert leader is not None, f"{event.key} was written at revision {event.revision} while nobody led"
            for placement in snapshot_of({event.key: event.value or b""}).placements:
                assert placement.epoch >= epochs.get(event.key, 0), f"the epoch of {event.key} fell"
                epochs[event.key] = placement.epoch
    for fleet in _at_each_revision(events):
        _check_devices(fleet)


def _at_each_revision(events: Sequence[Event]) -> Iterator[Snapshot]:
    """The placements, after each revision that changed one: a commit of several keys has one."""
    held: dict[str, bytes] = {}
    placing = (event for event in events if event.key.startswith(keys.PLACEMENTS))
    for _, together in groupby(placing, key=lambda event: event.revision):
        for event in together:
            if event.value is None:
                held.pop(event.key, None)
            else:
                held[event.key] = event.value
        yield snapshot_of(held)


def _check_devices(fleet: Snapshot) -> None:
    holders: dict[tuple[str, str], str] = {}
    for placement in fleet.placements:
        for device in placement.devices:
            holder = holders.setdefault((placement.node, device), placement.id)
            shared = device == "cpu" or holder == placement.id
            assert shared, f"{device} of {placement.node} was promised to {holder} and to {placement.id}"
