"""How requests are split over an alias's deployments and a rollout's generations: values in, values out."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepinfer.control_plane.router.candidate import Candidate, RoutedRequest
from deepinfer.control_plane.router.choose import eligible, least_loaded
from deepinfer.control_plane.router.split import NewGeneration, Split, rolling
from deepinfer.fleet.resources import Deployment
from deepinfer.fleet.rollout import Outcome, Rollout
from deepinfer.fleet.snapshot import Snapshot
from deepinfer.fleet.spec import RolloutPolicy
from tests.fleet_values import UID, deployment, placement

REQUEST = RoutedRequest("alias")


def candidate(deployment: str, number: int = 0) -> Candidate:
    return Candidate(f"{deployment}-{number}", 1, "node-1", "127.0.0.1:1", deployment=deployment)


def choose(candidates: list[Candidate], request: RoutedRequest, split: Split) -> Candidate | None:
    left = eligible(candidates, request, split)
    return least_loaded(left) if left else None


def taken(candidates: list[Candidate], split: Split, turns: range) -> Counter[str]:
    """Which deployments' replicas, or which replicas if there is one deployment."""
    chosen = [choose(candidates, REQUEST, replace(split, turn=turn)) for turn in turns]
    one = len({c.deployment for c in candidates}) == 1
    return Counter(c.placement if one else c.deployment for c in chosen if c is not None)


@given(
    st.lists(st.integers(1, 10_000), min_size=2, max_size=6),
    st.integers(0, 10**6),
    st.integers(1, 400),
    st.sampled_from((1, 2, 3, 7, 10)),
)
def test_any_turns_in_a_row_and_every_nth_are_near_the_weights(
    weights: list[int], first: int, count: int, step: int
) -> None:
    by_name = {f"d{number}": weight for number, weight in enumerate(weights)}
    got = taken(list(map(candidate, by_name)), Split(0, by_name), range(first, first + count * step, step))
    for name, weight in by_name.items():
        assert abs(got[name] - count * weight / sum(weights)) < 8, (got, by_name)


def test_nine_to_one_is_exactly_that_in_the_first_hundred() -> None:
    got = taken([candidate("a"), candidate("b")], Split(0, {"a": 9, "b": 1}), range(100))
    assert got == {"a": 90, "b": 10}


def test_who_has_no_candidate_gets_no_turn() -> None:
    split = Split(0, {"a": 1, "b": 1, "gone": 10_000})
    assert abs(taken([candidate("a"), candidate("b")], split, range(100))["a"] - 50) <= 1
    assert taken([candidate("b")], split, range(10)) == {"b-0": 10}
    failed = RoutedRequest(REQUEST.model, frozenset({"a-0"}))
    assert {choose([candidate("a"), candidate("b")], failed, replace(split, turn=n)) for n in range(20)} == {
        candidate("b")
    }


@pytest.mark.parametrize(
    ("percent", "wanted", "old", "new", "share"),
    [
        (10, 1, 1, 1, 10),
        (0, 1, 1, 1, 0),
        (100, 4, 4, 1, 100),
        (10, 4, 4, 1, 10),
        (10, 4, 3, 2, 25),  # an old one gets a quarter, as it did before
        (10, 4, 1, 4, 75),
        (10, 4, 0, 4, 100),
        (10, 4, 4, 0, 0),
        (10, 0, 1, 1, 10),  # scaled down to nothing meanwhile
    ],
)
def test_a_new_generation_gets_its_share_and_no_old_replica_more_than_before(
    percent: int, wanted: int, old: int, new: int, share: int
) -> None:
    newest = frozenset(f"a-{number}" for number in range(old, old + new))
    split = Split(0, {}, {"a": NewGeneration(percent, wanted, newest)})
    got = taken([candidate("a", number) for number in range(old + new)], split, range(1000))
    assert abs(sum(got[name] for name in newest) - 10 * share) <= 5


def test_a_share_within_an_aliass_share_is_of_its_own() -> None:
    split = Split(0, {"a": 1, "b": 1}, {"a": NewGeneration(50, 1, frozenset({"a-1"}))})
    candidates = [candidate("a", 0), candidate("a", 1), candidate("b")]
    chosen = Counter(c.placement for n in range(1000) if (c := choose(candidates, REQUEST, replace(split, turn=n))))
    assert all(abs(chosen[name] - wanted) < 10 for name, wanted in {"a-0": 250, "a-1": 250, "b-0": 500}.items())


def rolled(percent: int | None, **of_the_engine: object) -> Deployment:
    """ "chat" with a spec of its own beside the replica's that runs."""
    known = deployment(replicas=2)
    policy = RolloutPolicy(new_generation_percent=percent)
    return known.model_copy(update={"spec": known.spec.model_copy(update={"rollout": policy, **of_the_engine})})


def test_the_newest_generation_is_known_by_what_its_engines_are() -> None:
    """Scaling alone makes a generation too, and its replicas stay."""
    fleet = Snapshot(deployments=(rolled(10),), placements=(placement(), placement(replica=1)))
    ids = frozenset(p.id for p in fleet.placements)
    assert rolling(fleet) == {"chat": NewGeneration(10, 2, ids)}
    changed = fleet.but(deployments=(rolled(10, max_model_len=64),))
    assert rolling(changed) == {"chat": NewGeneration(10, 2, frozenset())}
    assert rolling(fleet.but(deployments=(rolled(None),))) == {}
    failed = Rollout(deployment="chat", uid=UID, generation=1, outcome=Outcome.ROLLED_BACK)
    assert rolling(changed.but(rollouts=(failed,))) == {}
