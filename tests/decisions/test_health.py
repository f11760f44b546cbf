"""Which replicas are left out, for how long, and how they come back: values in, values out."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from deepinfer.control_plane.router.candidate import Candidate
from deepinfer.control_plane.router.choose import least_loaded, trusted
from deepinfer.control_plane.router.health import FAILURES, FORGIVEN_SECONDS, Health, Pace, Standing, slowed
from deepinfer.control_plane.router.retry_budget import MOST_SAVED, RetryBudget


def failed(health: Health, now: float, times: int = FAILURES) -> Health:
    for _ in range(times):
        health.failed(now)
    return health


def test_failures_in_a_row_eject_and_one_good_answer_between_them_does_not() -> None:
    health = failed(Health(), 100.0, FAILURES - 1)
    health.answered(100.0)
    failed(health, 100.0, FAILURES - 1)
    assert health.standing(100.0) is Standing.TRUSTED
    health.failed(100.0)
    assert health.standing(100.0) is Standing.EJECTED and health.ejections == 1


def test_one_request_probes_and_its_answer_takes_the_replica_back() -> None:
    health = failed(Health(), 100.0)
    assert health.standing(101.1) is Standing.PROBE
    health.asked(101.1)
    assert health.standing(101.1) is Standing.EJECTED  # for all others, until the probe is answered
    health.began(101.2)
    assert health.standing(101.2) is Standing.TRUSTED
    health.failed(101.3)  # on trial: one more failure is enough
    assert health.standing(101.3) is Standing.EJECTED


def test_a_probe_whose_client_hung_up_says_nothing() -> None:
    health = failed(Health(), 100.0)
    health.asked(101.1)
    health.said_nothing()
    assert health.standing(101.2) is Standing.PROBE


def test_each_ejection_lasts_twice_as_long_until_good_answers_have_made_up_for_it() -> None:
    health, now, lasted = Health(), 100.0, []
    for _ in range(8):
        failed(health, now)
        began = now
        while health.standing(now) is Standing.EJECTED:
            now += 0.25
        lasted.append(round(now - began))
        health.asked(now)
        health.began(now)
    assert lasted == [1, 2, 4, 8, 16, 32, 60, 60]
    health.answered(now + FORGIVEN_SECONDS + 1)
    failed(health, now + FORGIVEN_SECONDS + 2)
    assert health.standing(now + FORGIVEN_SECONDS + 3.1) is Standing.PROBE


def test_requests_it_had_before_do_not_lengthen_an_ejection() -> None:
    health = failed(Health(), 100.0, 10 * FAILURES)
    assert health.standing(101.1) is Standing.PROBE


def test_what_two_replicas_refuse_is_held_against_none() -> None:
    health = Health()
    for _ in range(5 * FAILURES):
        health.failed(100.0)
        health.acquitted()
    assert health.standing(100.0) is Standing.TRUSTED


def test_slowing_is_judged_by_the_own_past_and_by_the_peers() -> None:
    card, slower_card = Pace().after(0.01), Pace().after(0.05)
    assert not slowed(slower_card, [card])  # it never was faster
    assert slowed(card.after(0.1), [slower_card])
    assert not slowed(card.after(0.1), [slower_card.after(0.5)])  # as loaded as the others
    assert not slowed(card.after(0.1), [])


def candidate(name: str, standing: Standing) -> Candidate:
    return Candidate(name, 1, "node-1", "127.0.0.1:1", standing=standing)


STANDINGS = st.lists(st.sampled_from(Standing), min_size=1, max_size=9)


@given(STANDINGS)
def test_never_more_than_half_are_left_out_and_who_is_trusted_never(standings: Sequence[Standing]) -> None:
    candidates = [candidate(f"r{at}", standing) for at, standing in enumerate(standings)]
    left = trusted(candidates)
    assert 2 * len(left) >= len(candidates)
    assert all(c in left for c in candidates if c.standing is not Standing.EJECTED)


def test_a_probe_is_due_before_anything_else_and_the_ejected_come_last() -> None:
    ejected, sound, due = (candidate(s.name, s) for s in (Standing.EJECTED, Standing.TRUSTED, Standing.PROBE))
    assert least_loaded((ejected, sound, due)) == due
    assert least_loaded((ejected, sound)) == sound
    assert least_loaded((ejected,)) == ejected


def test_retries_are_a_fifth_of_the_requests_and_a_quiet_gateway_has_some_anyway() -> None:
    budget = RetryBudget(0.0)
    while budget.spend(0.0):
        pass
    for _ in range(1000):
        budget.earn()
    assert sum(budget.spend(0.0) for _ in range(1000)) == MOST_SAVED
    assert budget.spend(1.5) and not budget.spend(1.5)
