"""One request at one engine, from its choice to its end."""

from __future__ import annotations

from types import TracebackType
from typing import Any, Protocol

from deepinfer.control_plane.router.decision import Decision
from deepinfer.control_plane.router.forecast import Forecast
from deepinfer.control_plane.router.health import Health
from deepinfer.control_plane.router.outlook import Outlook
from deepinfer.control_plane.router.router import Choice
from deepinfer.control_plane.router.routes import Route
from deepinfer.engine_shim.client import EngineClient
from deepinfer.fleet.errors import EngineFailed


class Lender(Protocol):
    """The connection that a loan is of."""

    health: Health
    outlook: Outlook

    def now(self) -> float: ...

    def given_back(self, loan: Loan) -> None: ...

    def failed(self) -> None: ...

    def compared(self, forecast: Forecast, prompt_tokens: int, cached_tokens: int) -> None: ...


class Loan:
    """Counted in flight until its block ends, which gives it back. `work`: tokens, see `capacity.py`."""

    __slots__ = ("_judged", "_lender", "client", "decision", "deployment", "forecast", "placement", "work")

    def __init__(self, lender: Lender, client: EngineClient, route: Route, work: float, choice: Choice[Any]) -> None:
        self.client = client
        self.placement = route.placement
        self.deployment = route.deployment
        self.work = work
        self.forecast: Forecast = choice.forecast
        self.decision: Decision = choice.decision
        self._lender = lender
        self._judged = False

    def began(self) -> None:
        """Its first bytes came, and they are an answer, were it a refusal."""
        self._judged = True
        now = self._lender.now()
        self._lender.health.began(now)
        self._lender.outlook.began(self.forecast, now)
        self.decision.first_seconds = now - self.forecast.sent_at

    def told(self, prompt_tokens: int, cached_tokens: int) -> None:
        """What its answer says of its prompt, if it does. `cached_tokens` -1: it does not say."""
        if prompt_tokens:
            self.decision.cached_tokens = cached_tokens if cached_tokens >= 0 else None
            self._lender.compared(self.forecast, prompt_tokens, cached_tokens)

    def answered(self) -> None:
        """All of it came."""
        self._judged = True
        self._lender.health.answered(self._lender.now())

    def failed(self) -> None:
        """It could not be reached, or broke, or said what no sound engine says."""
        self._judged = True
        self._lender.failed()

    def acquitted(self) -> None:
        """Another one failed the same request, which is what was wrong then."""
        self._lender.health.acquitted()

    def give_back(self) -> None:
        if not self._judged:
            self._lender.health.said_nothing()
        self._lender.given_back(self)

    def __enter__(self) -> EngineClient:
        return self.client

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._judged and isinstance(error, EngineFailed):
            self.failed()
        elif error is None:
            self.answered()
        self.give_back()
