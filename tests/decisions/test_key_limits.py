"""What an API key may use: buckets, debts, and what gateways tell each other. Values in, values out."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepinfer.control_plane.limits.bucket import Bucket
from deepinfer.control_plane.limits.key_usage import KeyUsage
from deepinfer.control_plane.limits.ledger import Ledger
from deepinfer.control_plane.openai_errors import RateLimited
from deepinfer.fleet.api_key import KeyLimits


@given(st.lists(st.tuples(st.floats(0, 30), st.floats(0, 50)), max_size=60))
def test_no_minute_gives_more_than_two_buckets_and_no_hour_more_than_its_rate(
    asks: Sequence[tuple[float, float]],
) -> None:
    bucket, now, taken = Bucket(100, 0.0), 0.0, 0.0
    for pause, units in asks:
        now += pause
        if not bucket.seconds_until(units, now):
            bucket.take(units, now)
            taken += units
        assert taken <= 100 + now * 100 / 60 + 1e-6


def test_after_the_time_it_names_there_is_enough() -> None:
    bucket = Bucket(60, 0.0)
    bucket.take(90, 0.0)
    assert bucket.seconds_until(10, 0.0) == pytest.approx(40)
    assert bucket.seconds_until(10, 39.0) and not bucket.seconds_until(10, 40.01)
    assert bucket.seconds_until(1000, 40.01) == pytest.approx(49.99)  # more than it holds: when it is full


def limited(**limits: int) -> KeyUsage:
    return KeyUsage(KeyLimits(**limits), 0.0)


def test_requests_tokens_and_streams_are_each_limited_and_a_refusal_takes_nothing() -> None:
    usage = limited(requests_per_minute=2)
    usage.begin(10, 0.0)
    usage.begin(10, 0.0)
    with pytest.raises(RateLimited, match="2 requests a minute") as refused:
        usage.begin(10, 0.0)
    assert refused.value.retry_seconds == 30
    usage.begin(10, 30.0)

    usage = limited(tokens_per_minute=100)
    usage.begin(90, 0.0)
    with pytest.raises(RateLimited, match="10 are left, and this request may need 20"):
        usage.begin(20, 0.0)
    usage.end(-80, 0.0)  # it needed 10
    usage.begin(20, 0.0)

    usage = limited(concurrent_streams=1)
    usage.begin(1, 0.0)
    with pytest.raises(RateLimited, match="1 run"):
        usage.begin(1, 0.0)
    usage.end(0, 0.0)
    usage.begin(1, 0.0)


def test_what_was_not_foreseen_is_owed() -> None:
    usage = limited(tokens_per_minute=60)
    usage.begin(10, 0.0)
    usage.end(110, 0.0)  # 120 in all
    with pytest.raises(RateLimited) as refused:
        usage.begin(1, 0.0)
    assert refused.value.retry_seconds == 61


def test_another_limit_counts_at_once_and_forgives_nothing() -> None:
    usage = limited(requests_per_minute=10)
    for _ in range(10):
        usage.begin(0, 0.0)
    usage.change(KeyLimits(requests_per_minute=12), 0.0)
    usage.begin(0, 0.0)
    usage.begin(0, 0.0)
    with pytest.raises(RateLimited):
        usage.begin(0, 0.0)
    assert dict(usage.headers(0.0))[b"x-ratelimit-remaining-requests"] == b"0"


def tell(one: Ledger, other: Ledger, now: float) -> None:
    other.told("one", one.here(), now)


def test_gateways_together_give_a_key_its_rate() -> None:
    """Three gateways under more load than the limit allows, which hear of each other twice a second: bounded."""
    limits = KeyLimits(requests_per_minute=600)
    gateways = [Ledger() for _ in range(3)]
    let_in = [0] * 1200
    for tick in range(1200):  # a tenth of a second each
        now = tick / 10
        for gateway in gateways:
            usage = gateway.usage("k", limits, now)
            for _ in range(3):  # 90 a second are asked for; 10 are allowed
                try:
                    usage.begin(0, now)
                except RateLimited:
                    break
                let_in[tick] += 1
                usage.end(0, now)
        if tick % 5 == 4:
            for at, gateway in enumerate(gateways):
                for other in gateways:
                    if other is not gateway:
                        other.told(f"gateway-{at}", gateway.here(), now)
    allowed = 600 + 600 * 2
    others_in_half_a_second = 2 * 3 * 5
    assert allowed * 0.95 <= sum(let_in) <= allowed + others_in_half_a_second


def test_a_gateway_that_a_key_comes_to_first_knows_what_it_used_elsewhere() -> None:
    limits = KeyLimits(requests_per_minute=10, concurrent_streams=8)
    busy, idle = Ledger(), Ledger()
    tell(busy, idle, 0.0)
    usage = busy.usage("k", limits, 0.0)
    for _ in range(7):
        usage.begin(0, 0.0)
    tell(busy, idle, 0.5)
    there = idle.usage("k", limits, 1.0)
    there.begin(0, 1.0)
    with pytest.raises(RateLimited, match="8 run"):
        there.begin(0, 1.0)
    idle.gone("one")  # and what ran there
    there.begin(0, 1.0)
    there.begin(0, 1.0)
    with pytest.raises(RateLimited, match="requests a minute"):
        there.begin(0, 1.0)


def test_what_a_gateway_counted_before_it_was_heard_of_is_not_charged() -> None:
    limits = KeyLimits(requests_per_minute=10)
    old, new = Ledger(), Ledger()
    usage = old.usage("k", limits, 0.0)
    for _ in range(10):
        usage.begin(0, 0.0)
    new.found("one", old.here(), 3600.0)
    fresh = new.usage("k", limits, 3600.0)
    fresh.begin(0, 3600.0)
