"""`make demo-shards`: a model larger than any of three workers, cut over them, that survives losing one.

Everything runs on this machine, in a temporary folder, and ends with the demo; the model stays in the cache.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path

from rich.console import Console
from rich.text import Text

from benchmarks.shards.demo_fleet import CAPS_MB, CONTEXT, NAME, DemoFleet, Piece
from benchmarks.shards.demo_words import Measured, layers_table, parts_of, planned, speed_table
from deepinfer.cli.failures import CommandError
from deepinfer.cli.supervision import Children, StopAsked
from deepinfer.cli.waiting import display
from deepinfer.fleet.model_shape import ModelShape
from deepinfer.fleet.models_here import model_here
from deepinfer.fleet.pipeline import Layout
from deepinfer.fleet.places import cache_dir
from deepinfer.planning.model_files import shape_of_folder

QUESTION = "Explain in a few sentences why the sky is blue during the day and red in the evening."
TOKENS = 120
KILLED_AFTER = 30  # tokens
AT_ONCE = 8
MOST_TOKENS = 256  # of question and answer


class Demo:
    """One telling of the story."""

    def __init__(self, fleet: DemoFleet, console: Console) -> None:
        self._fleet, self._console = fleet, console

    async def tell(self) -> None:
        caps = ", ".join(f"{name} with {megabytes} MB" for name, megabytes in CAPS_MB.items())
        self._say(f"SmolLM2-135M over three workers of which none can hold it: {caps}")
        began = time.monotonic()
        await self._come_up()
        shape = shape_of_folder(model_here(NAME, cache_dir() / "models"), "auto")
        layout = self._fleet.layout()
        self._say(f"It serves after {time.monotonic() - began:.0f} s. Who has which layers:")
        self._show_layers(layout, shape)
        undisturbed = await self._lone_answer()
        await self._show_speed(layout, shape, undisturbed)
        await self._lose_a_stage(layout, shape, _text(undisturbed))

    async def _come_up(self) -> None:
        with display() as shown:
            await self._fleet.come_up(shown.show)

    def _show_layers(self, layout: Layout, shape: ModelShape) -> None:
        self._console.print(layers_table(layout, planned(shape, layout, CAPS_MB, (CONTEXT, 1)), CAPS_MB))

    async def _lone_answer(self) -> list[Piece]:
        self._say(f"\n“{QUESTION}”")
        pieces = [Piece("", time.perf_counter())]  # when it was asked
        async for piece in self._fleet.answer(QUESTION, TOKENS):
            self._print(piece.text)
            pieces.append(piece)
        self._console.print("\n")
        return pieces

    async def _show_speed(self, layout: Layout, shape: ModelShape, lone: list[Piece]) -> None:
        began = time.perf_counter()
        asked = (self._pieces(f"{number}. {QUESTION}") for number in range(AT_ONCE))
        counts = map(len, await asyncio.gather(*asked))
        rate = sum(counts) / (time.perf_counter() - began)
        one, many = (planned(shape, layout, CAPS_MB, (MOST_TOKENS, count)) for count in (1, AT_ONCE))
        rows = [("one stream", one, _measured(lone)), (f"{AT_ONCE} streams", many, Measured(0, 0, rate))]
        self._console.print(speed_table(rows))

    async def _pieces(self, question: str) -> list[Piece]:
        return [piece async for piece in self._fleet.answer(question, TOKENS)]

    async def _lose_a_stage(self, layout: Layout, shape: ModelShape, expected: str) -> None:
        victim = layout.seats[-1]
        self._say(
            f"\nThe same question; after {KILLED_AFTER} tokens, worker {victim.node}'s stage is killed (kill -9):"
        )
        pieces = [Piece("", time.perf_counter())]
        colour = "green"
        async for piece in self._fleet.answer(QUESTION, TOKENS):
            pieces.append(piece)
            self._print(piece.text, colour)
            if len(pieces) == KILLED_AFTER:
                pid = self._fleet.kill_a_stage(victim.placement)
                self._print(f" ✂ process {pid} is dead ✂ ", "bold red")
                colour = "yellow"
        silence = max(after.at - before.at for before, after in pairwise(pieces[KILLED_AFTER - 1 :]))
        same = _text(pieces) == expected
        self._say(f"\n\nIt went on after {silence:.1f} s, and the answer is {'the same' if same else 'ANOTHER ONE'}.")
        now = self._fleet.layout()
        if parts_of(now) != parts_of(layout):
            self._say("Who has which layers now:")
            self._show_layers(now, shape)
        if not same:
            raise SystemExit(f"It was to be:\n{expected}")

    def _say(self, sentence: str) -> None:
        self._console.print(Text(sentence, "bold"))

    def _print(self, text: str, style: str = "green") -> None:
        self._console.print(Text(text, style), end="", soft_wrap=True)


def _text(pieces: list[Piece]) -> str:
    return "".join(piece.text for piece in pieces)


def _measured(pieces: list[Piece]) -> Measured:
    """Of one answer; the first piece is the question."""
    gaps = [after.at - before.at for before, after in pairwise(pieces[1:])]
    whole = pieces[-1].at - pieces[1].at
    return Measured(pieces[1].at - pieces[0].at, statistics.median(gaps), len(gaps) / whole)


async def _run(home: Path) -> int:
    console = Console(highlight=False)
    async with Children(home / "logs", lambda sentence: None) as children:
        fleet = DemoFleet(children, home)
        try:
            await children.unless_one_dies(Demo(fleet, console).tell())
        except StopAsked:
            return 130
        except CommandError as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
        finally:
            fleet.close()
            console.print("\nEverything ends now; the model stays in the cache.")
    return 0


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="deepinfer-") as folder:
        run = Path(folder, "run")
        run.mkdir(mode=0o700)
        os.environ |= {"XDG_DATA_HOME": folder, "XDG_RUNTIME_DIR": str(run)}
        return asyncio.run(_run(Path(folder)))


if __name__ == "__main__":
    sys.exit(main())
