"""One request at one engine, from its choice to its end."""

from __future__ import annotations

from types import TracebackType
from typing import Protocol

from deepinfer.control_plane.router.health import Health
from deepinfer.control_plane.router.routes import Route
from deepinfer.engine_shim.client import EngineClient
from deepinfer.fleet.errors import EngineFailed


class Lender(Protocol):
    """The connection that a loan is of."""

    health: Health

    def now(self) -> float: ...

    def given_back(self, work: float) -> None: ...

    def failed(self) -> None: ...


class Loan:
    """Counted in flight until its block ends, which gives it back. `work`: tokens, see `capacity.py`."""

    __slots__ = ("_judged", "_lender", "_work", "client", "deployment", "placement")

    def __init__(self, lender: Lender, client: EngineClient, route: Route, work: float) -> None:
        self.client = client
        self.placement = route.placement
        self.deployment = route.deployment
        self._lender = lender
        self._work = work
        self._judged = False

    def began(self) -> None:
        """Its first bytes came, and they are an answer, were it a refusal."""
        self._judged = True
        self._lender.health.began(self._lender.now())

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
        self._lender.given_back(self._work)

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
