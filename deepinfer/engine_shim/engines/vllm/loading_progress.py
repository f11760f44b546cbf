"""How far the loading is, read off what vLLM's processes print: it tells nobody otherwise.

A load may take minutes, most of it in other processes, whose lines all end up in the engine's log.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from pathlib import Path
from typing import Final

_LOOK_SECONDS: Final = 0.5
_STAGES: Final = (
    (re.compile(r"Loading \S+ checkpoint shards:\s+(\d+% Completed \| \d+/\d+)"), "loading weights: {}"),
    (re.compile(r"Starting to load model (\S+)"), "loading weights"),
    (re.compile(r"Loading weights took ([\d.]+ seconds)"), "weights loaded in {}; measuring memory"),
    (re.compile(r"(?:GPU|CPU) KV cache size: ([\d,]+ tokens)"), "room for {} in the KV cache; warming up"),
    (re.compile(r"Capturing CUDA graphs?[^:]*:\s+(\d+%[^|]*)\|"), "capturing CUDA graphs: {}"),
    (re.compile(r"torch\.compile takes ([\d.]+ s)"), "compiled in {}"),
    (re.compile(r"Start compiling|Compiling a graph|Dynamo bytecode transform"), "compiling"),
    (re.compile(r"Initializing a V1 LLM engine"), "starting the engine core"),
)


def stage_of(line: str) -> str | None:
    """What a line tells of the loading, in a few words; None: nothing."""
    for pattern, words in _STAGES:
        if found := pattern.search(line):
            return words.format(*found.groups())
    return None


async def tell_progress(log: Path, tell: Callable[[str], None]) -> None:
    """Follow the log for ever and tell each new stage. Cancelled when the engine is loaded."""
    last: str | None = None
    with log.open("rb") as lines:
        lines.seek(0, 2)
        rest = b""
        while True:
            *whole, rest = re.split(rb"[\r\n]", rest + lines.read())
            for line in whole:
                stage = stage_of(line.decode(errors="replace"))
                if stage is not None and stage != last:
                    tell(stage)
                    last = stage
            await asyncio.sleep(_LOOK_SECONDS)  # another process writes a file: there is no event that all systems have
