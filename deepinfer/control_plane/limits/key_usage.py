"""What one API key has used, here and at the other gateways, and whether it may have more. Pure: time is given."""

from __future__ import annotations

import math
from collections.abc import Mapping
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
    """`here` is what other gateways are told."""

    def __init__(self, limits: KeyLimits, now: float) -> None:
        self.here = Counts()
        self._elsewhere: dict[str, int] = {}  # gateway -> streams that run there
        self._limits = limits
        self._requests = _bucket(limits.requests_per_minute, None, now)
        self._tokens = _bucket(limits.tokens_per_minute, None, now)

    def change(self, limits: KeyLimits, now: float) -> None:
        if limits != self._limits:
            self._limits = limits
            self._requests = _bucket(limits.requests_per_minute, self._requests, now)
            self._tokens = _bucket(limits.tokens_per_minute, self._tokens, now)

    def begin(self, tokens: int, now: float) -> None:
        """A request that may need so many. Raises `RateLimited`; then nothing was taken."""
        self._refuse(self._requests, 1, "requests", now)
        self._refuse(self._tokens, tokens, "tokens", now)
        most, running = self._limits.concurrent_streams, self._running
        if most is not None and running >= most:
            raise RateLimited(f"Of this key's requests {running} run, and {most} may at once; wait for one to end.", 1)
        self._count(1, tokens, now)
        self.here = self.here._replace(streams=self.here.streams + 1)

    def end(self, more_tokens: int, now: float) -> None:
        """It has ended; `more_tokens` than foreseen, or fewer."""
        self._count(0, more_tokens, now)
        self.here = self.here._replace(streams=self.here.streams - 1)

    def runs_elsewhere(self, gateway: str, streams: int) -> None:
        self._elsewhere[gateway] = streams

    def charge(self, requests: int, tokens: int, now: float) -> None:
        """What was used, here or elsewhere."""
        if self._requests is not None:
            self._requests.take(requests, now)
        if self._tokens is not None:
            self._tokens.take(tokens, now)

    def headers(self, now: float) -> Mapping[str, str]:
        """As OpenAI tells them."""
        told: dict[str, str] = {}
        for name, bucket in (("requests", self._requests), ("tokens", self._tokens)):
            if bucket is not None:
                told[f"x-ratelimit-limit-{name}"] = str(int(bucket.most))
                told[f"x-ratelimit-remaining-{name}"] = str(max(0, int(bucket.left(now))))
                told[f"x-ratelimit-reset-{name}"] = f"{bucket.seconds_until(bucket.most, now):.0f}s"
        return told

    @property
    def _running(self) -> int:
        return self.here.streams + sum(self._elsewhere.values())

    def _refuse(self, bucket: Bucket | None, units: int, what: str, now: float) -> None:
        if bucket is None:
            return
        seconds = math.ceil(bucket.seconds_until(units, now))
        if seconds:
            left, most = max(0, int(bucket.left(now))), int(bucket.most)
            needs = f", and this request may need {units}" if what == "tokens" else ""
            told = f"This key may have {most} {what} a minute; {left} are left{needs}. Try again in {seconds} s."
            raise RateLimited(told, seconds)

    def _count(self, requests: int, tokens: int, now: float) -> None:
        self.charge(requests, tokens, now)
        self.here = self.here._replace(requests=self.here.requests + requests, tokens=self.here.tokens + tokens)


def _bucket(most: int | None, known: Bucket | None, now: float) -> Bucket | None:
    if most is None:
        return None
    if known is None:
        return Bucket(most, now)
    known.change(most, now)
    return known
