"""From a request and the replicas that could answer it to the one that does, and why.

Looks at no more than the policy needs: where there is one replica, or its policy looks at none, nothing is computed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final, Generic, Protocol, TypeVar

from deepinfer.control_plane.router.block_chains import BlockChains
from deepinfer.control_plane.router.candidate import RoutedRequest, Seen
from deepinfer.control_plane.router.choose import by_load, cheapest, sticky
from deepinfer.control_plane.router.cost import cost_of, least_share, price_of_work
from deepinfer.control_plane.router.decision import Decision, Decisions
from deepinfer.control_plane.router.forecast import Forecast
from deepinfer.control_plane.router.found import Found
from deepinfer.control_plane.router.outlook import CLAIM_CREDIT, Outlook
from deepinfer.control_plane.router.sessions import Sessions
from deepinfer.control_plane.router.warm_texts import text_chain
from deepinfer.engine_shim.kv_chain import extra_digest, root_of
from deepinfer.fleet.spec import RoutingPolicy

_NO_OTHER: Final = "no other replica could answer it"
_SESSION_SHARE: Final = 0.5
"""Of a text, that came before: then it belongs to a session, where the client names none."""
_UNKNOWN: Final = Found()


class Routed(Seen, Protocol):
    """A replica, and what is known of it."""

    @property
    def outlook(self) -> Outlook: ...
    @property
    def policy(self) -> RoutingPolicy: ...
    @property
    def wants_contents(self) -> bool: ...
    @property
    def others(self) -> tuple[str, ...]: ...


R = TypeVar("R", bound=Routed)


class Choice(Generic[R]):
    """A replica for a request, and what is expected of it there."""

    __slots__ = ("candidate", "decision", "forecast", "request", "text")

    def __init__(self, candidate: R, forecast: Forecast, decision: Decision, request: RoutedRequest) -> None:
        self.candidate = candidate
        self.forecast = forecast
        self.decision = decision
        self.request = request
        self.text: Sequence[int] = ()


class Router:
    """Of one gateway: what it remembers of requests."""

    def __init__(self) -> None:
        self.decisions = Decisions()
        self._sessions = Sessions()
        self._chains = BlockChains()

    def choose(self, candidates: Sequence[R], request: RoutedRequest, turn: int, now: float) -> Choice[R]:
        """Among at least one."""
        policy = candidates[0].policy
        if policy is RoutingPolicy.KV and candidates[0].wants_contents:
            return self._by_cost(candidates, request, now)
        if len(candidates) == 1:
            return self._chosen(candidates[0], request, policy, _NO_OTHER, now)
        if policy is RoutingPolicy.SESSION:
            return self._by_session(candidates, request, now)
        return self._chosen(by_load(policy, candidates, turn), request, policy, "", now)

    def to_prefill(self, candidate: R, request: RoutedRequest, now: float) -> Choice[R]:
        """One that was chosen to compute the request's prompt, and ends with its first token."""
        choice = self._chosen(candidate, request, candidate.policy, "it prefills", now)
        choice.forecast.streams = True  # as of a stream, the first thing to hear of it is its first token
        return choice

    def resident(self, candidates: Sequence[R], request: RoutedRequest, now: float) -> list[float]:
        """Tokens of its prompt that are known to lie at each.

        Guesses, and what is about to be filled, are left out: the request itself went there, as far as the books know.
        """
        every = self._found(candidates, request, (), now)
        return [float(found.held) for found in every]

    def took(self, choice: Choice[R], bytes_a_token: float) -> None:
        """The request goes there."""
        request, outlook = choice.request, choice.candidate.outlook
        if choice.text:
            outlook.warm.came(choice.text, bytes_a_token)
        if request.session:
            tokens = request.prompt_tokens + int(request.answer_tokens)
            self._sessions.went(request.model, request.session, outlook.placement, tokens)
        self.decisions.add(choice.decision)

    def _by_cost(self, candidates: Sequence[R], request: RoutedRequest, now: float) -> Choice[R]:
        text = text_chain(request.text)
        _assume_speeds(candidates)
        found = self._found(candidates, request, text, now)
        prospects = tuple(
            [candidate.outlook.prospect(request, one, now) for candidate, one in zip(candidates, found, strict=True)]
        )
        price, share = price_of_work(prospects), least_share(prospects)
        costs = tuple([cost_of(prospect, request.answer_tokens, price, share) for prospect in prospects])
        seconds = [cost.total for cost in costs]
        at = cheapest(candidates, seconds)
        why = "" if seconds[at] <= min(seconds) else "about as cheap, and less loaded"
        why = _NO_OTHER if len(candidates) == 1 else why
        choice = self._chosen(candidates[at], request, RoutingPolicy.KV, why, now)
        choice.text = text
        forecast, decision = choice.forecast, choice.decision
        forecast.cached_tokens = prospects[at].cached_tokens
        forecast.uncached_tokens = prospects[at].uncached_tokens
        forecast.first_seconds = prospects[at].queue_seconds + forecast.uncached_tokens / prospects[at].prefill_rate
        forecast.foreseen_seconds = costs[at].first_token
        forecast.from_index = found[at].is_exact and found[at].expected == found[at].held
        forecast.names = found[at].to_fill
        decision.prospects, decision.costs = prospects, costs
        decision.foreseen_cached = forecast.cached_tokens
        decision.foreseen_first_seconds = forecast.foreseen_seconds
        return choice

    def _by_session(self, candidates: Sequence[R], request: RoutedRequest, now: float) -> Choice[R]:
        text = text_chain(request.text)
        placement, _ = self._sessions.last(request.model, request.session)
        why = "its session was there before" if placement else ""
        if not placement and not request.session:
            share, placement = max((c.outlook.warm.share(text), c.placement) for c in candidates)
            if share < _SESSION_SHARE:
                placement = ""
            why = "the begin of its text was there before" if placement else ""
        chosen = sticky(candidates, placement)
        if chosen.placement != placement:
            why = "the least loaded, for a session that is new or has lost its replica"
        choice = self._chosen(chosen, request, RoutingPolicy.SESSION, why, now)
        choice.text = text
        return choice

    def _chosen(self, candidate: R, request: RoutedRequest, policy: RoutingPolicy, why: str, now: float) -> Choice[R]:
        forecast = Forecast(request.prompt_tokens, 0.0, now, streams=request.streams)
        forecast.is_exact = bool(request.tokens)
        decision = Decision(
            request.id.decode("latin-1"), request.model, policy.value, candidate.placement, why, request.prompt_tokens
        )
        return Choice(candidate, forecast, decision, request)

    def _found(
        self, candidates: Sequence[R], request: RoutedRequest, text: Sequence[int], now: float
    ) -> Sequence[Found]:
        """What lies where, in the candidates' order."""
        session = self._sessions.last(request.model, request.session)
        found: list[Found] = []
        alike: dict[tuple[int, int], list[int]] = {}  # those that one look-up tells of
        for number, candidate in enumerate(candidates):
            outlook = candidate.outlook
            doubt = request.no_tokens or outlook.doubt(now)
            found.append(_guessed(outlook, request, (text, session), doubt) if doubt else _UNKNOWN)
            if not doubt:
                alike.setdefault((id(outlook.shelf.index), outlook.block_size), []).append(number)
        for numbers in alike.values():
            known = self._looked_up([candidates[number] for number in numbers], request)
            for number, one in zip(numbers, known, strict=True):
                found[number] = one
        return found

    def _looked_up(self, candidates: Sequence[R], request: RoutedRequest) -> Iterator[Found]:
        """In the one index of them all, whose blocks have the same size."""
        one = candidates[0]
        size = one.outlook.block_size
        adapter = request.model if request.model in one.others else ""
        salt = extra_digest([request.salt]) if request.salt else 0
        names = self._chains.names(request.tokens, size, root_of(adapter), salt)
        useful = names[: (request.prompt_tokens - 1) // size]  # the last token is always computed
        held = one.outlook.shelf.index.resident(useful, size, [candidate.outlook.shelf for candidate in candidates])
        for candidate, tokens in zip(candidates, held, strict=True):
            first = tokens // size
            claimed = candidate.outlook.claims.more(useful, first) * size
            yield Found(tokens + CLAIM_CREDIT * claimed, tokens, names, first, "kv")


def _guessed(
    outlook: Outlook, request: RoutedRequest, remembered: tuple[Sequence[int], tuple[str, int]], doubt: str
) -> Found:
    text, (placement, tokens) = remembered
    guess = outlook.guessed(request, text, tokens if placement == outlook.placement else 0)
    return Found(guess, known_by="text" if guess else "", doubt=doubt)


def _assume_speeds(candidates: Sequence[R]) -> None:
    """One that has not told its own yet is as fast as the fastest that has."""
    known = [candidate.outlook.speed.known for candidate in candidates]
    rates, seconds = zip(*known, strict=True)
    if 0.0 in rates or 0.0 in seconds:
        least = min((each for each in seconds if each), default=0.0)
        for candidate in candidates:
            candidate.outlook.speed.assume(max(rates), least)
