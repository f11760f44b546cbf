"""What one API key has used, here and at the other gateways, and whether it may have more. Pure: time is given."""

from __future__ import annotations

import math
from typing import NamedTuple

from deepinfer.control_plane.limits.bucket import Bucket
from deepinfer.control_plane.openai_errors import RateLimited
from deepinfer.fleet.api_key import KeyLimits


class Counts(NamedTuple):
    """Of one key at one gateway: requests and tokens since the gateway began, and streams that run."""

    requests: int = 0
    tokens: int = 0
    streams: int = 0


class KeyUsage:
    """At this gateway, which knows what others tell."""

    def __init__(self, limits: KeyLimits, now: float) -> None:
        self._began = self._used = self._run = 0  # requests, tokens and streams, of this gateway
        self._elsewhere: dict[str, int] = {}  # gateway -> streams that run there
        self._limits = limits
        self._requests = _bucket(limits.requests_per_minute, None, now)
        self._tokens = _bucket(limits.tokens_per_minute, None, now)
        self._told = _most_told(limits)

    def change(self, limits: KeyLimits, now: float) -> None:
        if limits is not self._limits and limits != self._limits:
            self._limits = limits
            self._requests = _bucket(limits.requests_per_minute, self._requests, now)
            self._tokens = _bucket(limits.tokens_per_minute, self._tokens, now)
            self._told = _most_told(limits)

    def begin(self, tokens: int, now: float) -> None:
        """A request that may need so many. Raises `RateLimited`; then nothing was taken."""
        most, requests, held = self._limits.concurrent_streams, self._requests, self._tokens
        if most is not None and (running := self._running) >= most:
            raise RateLimited(f"Of this key's requests {running} run, and {most} may at once; wait for one to end.", 1)
        if requests is not None and not requests.spend(1, now):
            raise _refusal(requests, 1, "requests", now)
        if held is not None and not held.spend(tokens, now):
            if requests is not None:
                requests.take(-1, now)
            raise _refusal(held, tokens, "tokens", now)
        self._began += 1
        self._run += 1
        self._used += tokens

    def end(self, more_tokens: int, now: float) -> None:
        """It has ended; `more_tokens` than foreseen, or fewer."""
        self._run -= 1
        self._used += more_tokens
        if self._tokens is not None:
            self._tokens.take(more_tokens, now)

    def runs_elsewhere(self, gateway: str, streams: int) -> None:
        self._elsewhere[gateway] = streams

    def charge(self, requests: int, tokens: int, now: float) -> None:
        """What was used, here or elsewhere."""
        if self._requests is not None:
            self._requests.take(requests, now)
        if self._tokens is not None:
            self._tokens.take(tokens, now)

    def headers(self, now: float) -> tuple[tuple[bytes, bytes], ...]:
        """As OpenAI tells them."""
        told: tuple[tuple[bytes, bytes], ...] = ()
        if self._requests is not None:
            left = b"%d" % max(0.0, self._requests.left(now))
            told = (self._told[0], (b"x-ratelimit-remaining-requests", left))
        if self._tokens is not None:
            left = b"%d" % max(0.0, self._tokens.left(now))
            told += (self._told[1], (b"x-ratelimit-remaining-tokens", left))
        return told

    @property
    def here(self) -> Counts:
        """What other gateways are told."""
        return Counts(self._began, self._used, self._run)

    @property
    def _running(self) -> int:
        return self._run + sum(self._elsewhere.values()) if self._elsewhere else self._run


def _refusal(bucket: Bucket, units: int, what: str, now: float) -> RateLimited:
    seconds = max(1, math.ceil(bucket.seconds_until(units, now)))
    left, most = max(0, int(bucket.left(now))), int(bucket.most)
    needs = f", and this request may need {units}" if what == "tokens" else ""
    told = f"This key may have {most} {what} a minute; {left} are left{needs}. Try again in {seconds} s."
    return RateLimited(told, seconds)


def _bucket(most: int | None, known: Bucket | None, now: float) -> Bucket | None:
    if most is None:
        return None
    if known is None:
        return Bucket(most, now)
    known.change(most, now)
    return known


def _most_told(limits: KeyLimits) -> tuple[tuple[bytes, bytes], tuple[bytes, bytes]]:
    requests, tokens = limits.requests_per_minute or 0, limits.tokens_per_minute or 0
    return (b"x-ratelimit-limit-requests", b"%d" % requests), (b"x-ratelimit-limit-tokens", b"%d" % tokens)
