"""Growing, jittered pauses between attempts, so that many clients do not come back in one instant."""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass


@dataclass(slots=True)
class Backoff:
    """How long to wait after each failure in a row, in seconds."""

    first: float = 0.05
    longest: float = 1.0
    _grown: float = 0.0

    def reset(self) -> None:
        """It worked: start small again."""
        self._grown = 0.0

    def next_pause(self) -> float:
        self._grown = min(self._grown * 2 or self.first, self.longest)
        return self._grown * random.uniform(0.5, 1.0)  # noqa: S311  # spreads load, guards nothing

    async def pause(self) -> None:
        await asyncio.sleep(self.next_pause())
