"""Who else may answer a request that an engine has failed in the middle of."""

from __future__ import annotations

import asyncio
from typing import Final

from msgspec.structs import replace

from deepinfer.control_plane.gateway.admission import Admission, Asked
from deepinfer.control_plane.gateway.attempts import Begun
from deepinfer.control_plane.gateway.measured import Measured
from deepinfer.control_plane.router.loan import Loan

_ANOTHER_HEAD_SECONDS: Final = 20.0


class Others:
    """Lends, at each call, a replica of the same deployment that has not failed the request.

    Once all have, it lends one that is ready again since: an engine that died is started anew under its name. The one
    that failed last is not among them, for it may not have been missed yet.
    """

    def __init__(self, admission: Admission, asked: Asked, begun: Begun, measured: Measured) -> None:
        self._admission = admission
        # An alias may lead to other models too: what one has begun only its own replicas can continue.
        self._asked = replace(asked, model=begun.loan.deployment, is_alias=False) if asked.is_alias else asked
        self._last = begun.loan.placement
        self._tried = begun.failed | {self._last}
        self._measured = measured

    async def awaited(self) -> Loan | None:
        """As a call; where none is left and the replica is in stages, so that another process will be its head within
        seconds, it is waited for."""
        try:
            async with asyncio.timeout(_ANOTHER_HEAD_SECONDS if self._admission.is_in_stages(self._asked.model) else 0):
                while (loan := self()) is None:
                    await self._admission.next_turn()
                    if self._last not in self._admission.ready_placements(self._asked.model):
                        self._last = ""  # it was missed: when it is there again, it is another one
                return loan
        except TimeoutError:
            return None

    def __call__(self) -> Loan | None:
        loan = self._admission.another(self._asked, self._tried)
        loan = loan or self._admission.another(self._asked, frozenset((self._last,)))
        if loan is not None:
            self._last, self._tried = loan.placement, self._tried | {loan.placement}
            self._measured.failed("broken")
            self._measured.continued()
            self._measured.sent_to(loan.placement)
        return loan
