"""How one engine reads prompts: asked of it once it is ready, if it makes a difference."""

from __future__ import annotations

import asyncio
import logging
from typing import Final

from deepinfer.control_plane.prompts.reader import PromptReader, PromptsUnforeseen
from deepinfer.control_plane.prompts.readers import PromptReaders
from deepinfer.engine_shim.client import EngineClient, ShimInfo
from deepinfer.fleet.errors import EngineFailed

log = logging.getLogger(__name__)

_AGAIN_SECONDS: Final = 2.0
_NOT_YET: Final = "how its engine reads prompts is not known yet"


class PromptReading:
    """`reader` is None for the reason in `why_not`."""

    def __init__(self, readers: PromptReaders) -> None:
        self.reader: PromptReader | None = None
        self.why_not = _NOT_YET
        self._readers = readers
        self._info: ShimInfo | None = None
        self._asked = asyncio.Event()

    def ask(self, info: ShimInfo) -> None:
        """Of an engine that is ready. It may be another one than before, with another tokenizer."""
        asked = None if self._info is None else (self._info.prompt_digest, self._info.engine_version)
        if asked != (info.prompt_digest, info.engine_version):
            self._info, self.reader, self.why_not = info, None, _NOT_YET
            self._asked.set()

    async def run(self, client: EngineClient, placement: str) -> None:
        """Never returns."""
        while True:
            await self._asked.wait()
            self._asked.clear()
            if self._info is None:
                continue
            try:
                self.reader = await self._readers.of(self._info, client)
                self.why_not = ""
            except PromptsUnforeseen as reason:
                self.why_not = str(reason).rstrip(".")
                log.info("%s is routed to by guesses: %s", placement, self.why_not)
            except EngineFailed as failure:
                log.info("%s did not say how it reads prompts: %s", placement, failure)
                await asyncio.sleep(_AGAIN_SECONDS)
                self._asked.set()
            except Exception:
                log.exception("%s: how its engine reads prompts cannot be understood", placement)
                self.why_not = "how its engine reads prompts cannot be understood"
