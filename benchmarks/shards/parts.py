"""What is measured of our own pipelines: cuts, hops, stages, links with time added, and a lost stage."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from benchmarks.engine import prompts_of
from benchmarks.shards import small_model
from benchmarks.shards.cuts import even_cuts
from benchmarks.shards.figures import median_ratio, percentile, table
from benchmarks.shards.rounds import rounds
from benchmarks.shards.sides import LAYERS, Cut, Side, order_of, side
from benchmarks.shards.small_model import save_small_model
from benchmarks.shards.steps import Answered, Hop, answered, hop_of, load_of, resumed_after

FIRST_CUT = 19  # the second of two stages chooses tokens besides, which takes as long as some eight layers
STREAMS = (1, 8, 32)
MANY_STREAMS = 64
LINKS = (0.0, 1.0, 10.0)  # milliseconds, one way
KILLED_AFTER = 0.4  # of what the answers take undisturbed

Figures = dict[str, float]


@dataclass(frozen=True)
class Bench:
    """The model, how often everything is measured, and where it is cut."""

    folder: Path
    count: int
    cuts: Mapping[int, tuple[int, ...]]  # of so many stages


def cuts_of(folder: Path) -> dict[int, tuple[int, ...]]:
    """By what a first cut takes with 32 streams."""
    with side("first cut", folder, Cut((FIRST_CUT,))) as first:
        prompts = prompts_of(folder, 32)
        first.answer(prompts)
        taken = load_of(first.answer(prompts).steps).step
    cuts = {stages: even_cuts(LAYERS, stages, taken, FIRST_CUT) for stages in (2, 3)}
    print(f"cuts: {_words(cuts[2])} layers in two stages, {_words(cuts[3])} in three", flush=True)
    return cuts


def _words(cuts: tuple[int, ...]) -> str:
    return " + ".join(str(stop - start) for start, stop in Cut(cuts).parts)


def hops(bench: Bench) -> Figures:
    """What a hop costs on loopback, with nothing else running: its software alone, between stages that compute next to
    nothing; and with SmolLM2, whose weights leave nothing of it in the processor's caches."""
    with tempfile.TemporaryDirectory() as folder:
        save_small_model(Path(folder))
        alone = _hop("nearly empty stages", Path(folder), Cut((1,), layers=small_model.LAYERS), bench.count)
    for stages, cuts in bench.cuts.items():
        _hop(f"{stages} stages of SmolLM2", bench.folder, Cut(cuts), bench.count)
    return {"hop_ms": 1000 * alone}


def _hop(name: str, folder: Path, cut: Cut, count: int) -> float:
    """The median of a hop in seconds, over a pipeline's laps with one stream."""
    with side(name, folder, cut) as pipeline:
        found = [hop_of(pipeline.answer([small_model.PROMPT]).steps) for _ in range(2 * count + 1)][1:]
    print(f"a hop between {name}: {_hop_words(found)}", flush=True)
    return statistics.median(hop.lap for hop in found)


def _hop_words(found: list[Hop]) -> str:
    laps = sorted(1000 * hop.lap for hop in found)
    way, queued = (statistics.median(1000 * getattr(hop, part) for hop in found) for part in ("way", "queued"))
    return (
        f"{statistics.median(laps):.3f} ms ({laps[0]:.3f}-{laps[-1]:.3f}) from step to step, {way:.3f} ms without the "
        f"head's own planning, {queued:.3f} ms of it from rows read to rows computed on"
    )


def stages(bench: Bench) -> Figures:
    """The whole model beside two and three stages, on the same cores."""
    with ExitStack() as stack:
        sides = [
            stack.enter_context(side("one stage", bench.folder, Cut(threads=2))),
            stack.enter_context(side("two stages", bench.folder, Cut(bench.cuts[2]))),
            stack.enter_context(side("three stages", bench.folder, Cut(bench.cuts[3]))),
        ]
        ratios = {streams: _beside(bench, streams, sides, "one stage")["two stages"] for streams in STREAMS}
    return {"two_stages_32": ratios[32]}


def delays(bench: Bench) -> Figures:
    """The same pipeline over links of 0, 1 and 10 ms, all through proxies."""
    ratios: dict[int, float] = {}
    for count in (2, 3):
        names = {milliseconds: f"{count} stages, links of {milliseconds:g} ms" for milliseconds in LINKS}
        with ExitStack() as stack:
            cut = bench.cuts[count]
            sides = [
                stack.enter_context(side(name, bench.folder, Cut(cut, link_milliseconds=milliseconds)))
                for milliseconds, name in names.items()
            ]
            for streams in (*STREAMS, MANY_STREAMS):
                ratios[count] = _beside(bench, streams, sides, names[0.0])[names[10.0]]
    return {"delay_10ms": ratios[2]}  # the last, with the most streams


def _beside(bench: Bench, streams: int, sides: list[Side], beside: str) -> dict[str, float]:
    """Side -> its median ratio to the one called `beside`; all must give the same answers."""
    found = rounds(bench.folder, streams, bench.count, {one.name: one.answer for one in sides})
    for answers in found:
        if any(one.tokens != answers[beside].tokens for one in answers.values()):
            raise SystemExit(f"With {streams} streams not all sides gave the same answers.")
    rates = [{name: one.rate for name, one in answers.items()} for answers in found]
    print("\n".join(table(streams, rates, beside)), flush=True)
    for name, one in found[-1].items():
        if one.steps:
            print(f"    {name}: {_load_words(one)}", flush=True)
    return {one.name: median_ratio(rates, one.name, beside) for one in sides}


def _load_words(one: Answered) -> str:
    load = load_of(one.steps)
    busy = ", ".join(f"{share:.0%}" for share in load.busy)
    took = ", ".join(f"{1000 * seconds:.1f}" for seconds in load.step)
    return (
        f"stages busy {busy} of the time with steps of {took} ms; {load.sequences:.1f} streams in a step, "
        f"{load.under_way:.1f} steps under way"
    )


def losing(bench: Bench) -> Figures:
    """SIGKILL of the second stage in mid-run, with a spare that waits: until the next token of every stream."""
    for streams in (1, 16):
        prompts = prompts_of(bench.folder, streams)
        with side("two stages and a spare", bench.folder, Cut(bench.cuts[2], spares=1)) as pipeline:
            pipeline.answer(prompts)
            undisturbed = pipeline.answer(prompts)
            pipeline.head.send(order_of(prompts))
            time.sleep(KILLED_AFTER * undisturbed.seconds)
            killed = time.perf_counter()  # the same clock in all processes of a machine
            pipeline.stages[0].kill()
            disturbed = answered(pipeline.head.answer())
        if disturbed.tokens != undisturbed.tokens:
            raise SystemExit("A lost stage changed the answers.")
        print(f"{streams} streams, the second stage killed: {_resumed_words(disturbed, killed)}", flush=True)
    return {}


def _resumed_words(disturbed: Answered, killed: float) -> str:
    waits = [resumed_after(came, killed) for came in disturbed.came]
    return (
        f"the next token after {statistics.median(waits):.2f} s (p50), {percentile(waits, 1):.2f} s at the latest; "
        f"every answer as undisturbed"
    )
