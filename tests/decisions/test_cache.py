"""The cache of the store: whatever happens, it equals what a fresh reading gives, and nothing is parsed twice."""

from __future__ import annotations

from collections.abc import Mapping

from hypothesis import given
from hypothesis import strategies as st

from deepinfer.fleet import keys
from deepinfer.fleet.cache import Cache
from deepinfer.fleet.reading import Changes, Entry, Reading
from deepinfer.fleet.resources import Phase
from deepinfer.fleet.snapshot import snapshot_of
from tests.fleet_values import deployment, placement, status

RECORDS = {
    keys.LEADER: [b"me", b"you"],
    keys.IDENTITY: [b"{}"],
    keys.deployment("chat"): [deployment().to_json(), deployment(replicas=2).to_json(), b"damaged"],
    keys.deployment("a"): [deployment("a").to_json()],
    keys.placement("node-1", placement().id): [placement().to_json(), placement(epoch=2).to_json()],
    keys.placement("node-2", placement().id): [placement(node="node-2").to_json(), b""],
    keys.status("node-1", placement().id): [status().to_json(), status(phase=Phase.FAILED).to_json()],
    f"{keys.FLEET}of-a-newer-version/x": [b"1"],
}
WRITES = st.sampled_from([(key, value) for key, values in RECORDS.items() for value in (*values, None)])
STEPS = st.one_of(st.lists(WRITES, min_size=1, max_size=4), st.just("compacted"), st.just("told again"))


class Store:
    """What etcd would say."""

    def __init__(self) -> None:
        self.revision = 1
        self.entries: dict[str, Entry] = {}

    def write(self, writes: list[tuple[str, bytes | None]]) -> Changes:
        self.revision += 1
        changed = {key: None if value is None else Entry(value, self.revision) for key, value in writes}
        self.entries |= {key: entry for key, entry in changed.items() if entry is not None}
        for key in (key for key, entry in changed.items() if entry is None):
            self.entries.pop(key, None)
        return Changes(changed, self.revision)

    @property
    def reading(self) -> Reading:
        return Reading(self.revision, dict(self.entries), (keys.FLEET,))


def agrees(cache: Cache, store: Store) -> None:
    assert cache.reading == store.reading
    assert cache.fleet == snapshot_of(store.reading.values)


@given(st.lists(STEPS, max_size=30), st.booleans())
def test_it_equals_a_fresh_reading_after_any_changes_and_compactions(steps: list[object], looks_between: bool) -> None:
    store, cache, last = Store(), Cache({}, 1), Changes({}, 1)
    for step in steps:
        if isinstance(step, list):
            last = store.write(step)
            cache.apply(last)
        elif step == "told again":
            cache.apply(last)
        else:  # changes were missed: everything is listed anew
            store.write([(key, values[0]) for key, values in RECORDS.items() if key not in store.entries])
            store.write([(key, None) for key in sorted(store.entries)[:3]])
            cache = Cache(store.entries, store.revision, cache)
        if looks_between:
            agrees(cache, store)
    agrees(cache, store)


def entries_of(values: Mapping[str, bytes], revision: int = 1) -> dict[str, Entry]:
    return {key: Entry(value, revision) for key, value in values.items()}


def test_what_did_not_change_is_the_very_same_record() -> None:
    values = {key: known[0] for key, known in RECORDS.items()}
    cache = Cache(entries_of(values), 1)
    before = cache.fleet
    cache.apply(Changes({keys.LEADER: Entry(b"x", 2)}, 2))
    assert cache.fleet is before
    cache.apply(Changes({keys.deployment("chat"): Entry(deployment(replicas=3).to_json(), 3)}, 3))
    assert cache.fleet.deployments[0] is before.deployments[0]
    assert cache.fleet.deployments[1].spec.replicas == 3
    assert cache.fleet.placements is before.placements
    listed = Cache(entries_of(values, 9), 9, cache)
    assert listed.fleet.placements[0] is before.placements[0]


def test_a_reading_and_a_snapshot_taken_stay_as_they_were() -> None:
    cache = Cache(entries_of({keys.deployment("chat"): deployment().to_json()}), 1)
    reading, fleet = cache.reading, cache.fleet
    other = cache.after(Changes({keys.deployment("chat"): None}, 2))
    cache.apply(Changes({keys.deployment("chat"): Entry(b"damaged", 3)}, 3))
    assert reading.mod_revision(keys.deployment("chat")) == 1
    assert (len(fleet.deployments), fleet.unreadable) == (1, {})
    assert (other.fleet.deployments, other.reading.entries) == ((), {})


def test_a_status_is_of_one_epoch_on_one_node() -> None:
    fleet = Cache(entries_of({keys.status("node-1", placement().id): status(epoch=2).to_json()}), 1).fleet
    assert fleet.status_of(placement(epoch=2)) is fleet.statuses[0]
    assert fleet.status_of(placement(epoch=1)) is None
    assert fleet.status_of(placement(epoch=2, node="node-2")) is None
