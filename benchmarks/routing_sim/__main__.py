"""deepinfer's routing beside its peers' published formulas, on fleets of simulated engines in virtual time.

`python -m benchmarks.routing_sim`. Each cell is a trace on a fleet; all policies get the same requests of the same
seeds, and hear of KV contents with the same delay. The last line has our figures over the best peer's of each cell, of
the worst cell.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

from benchmarks.routing_sim.comparison import Comparison, compared
from benchmarks.routing_sim.figures import Cell, Figures, last_line, mean_of
from benchmarks.routing_sim.fleets import FLEETS
from benchmarks.routing_sim.policies import LEAST_LOADED, OURS, POLICIES
from benchmarks.routing_sim.table import table
from benchmarks.routing_sim.traces import KINDS, NONE

_KINDS = {kind.name: kind for kind in KINDS}


def measured(given: argparse.Namespace) -> Iterator[tuple[Cell, Mapping[str, Figures]]]:
    """Cell by cell, as they come to their end."""
    cells = [(kind, fleet) for fleet in given.fleets for kind in given.traces]
    asked = [
        Comparison(kind, fleet, seed, given.policies, given.share)
        for kind, fleet in cells
        for seed in range(given.seeds)
    ]
    with ProcessPoolExecutor(os.cpu_count(), get_context("spawn")) as processes:
        answers = processes.map(compared, asked)
        for kind, fleet in cells:
            found = [next(answers) for _ in range(given.seeds)]
            yield (kind, fleet.name), {name: mean_of([each[name] for each in found]) for name in given.policies}


def _given() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.routing_sim",
        description="Measure deepinfer's routing beside others' on simulated fleets.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    fleets = {fleet.name: fleet for fleet in FLEETS}
    names = ",".join
    parser.add_argument("--traces", default=names(_KINDS), help="which, with commas between them")
    parser.add_argument("--fleets", default=names(fleets), help="which, with commas between them")
    parser.add_argument("--policies", default=names(POLICIES), help=f"which, beside {OURS} and {LEAST_LOADED}")
    parser.add_argument("--seeds", type=int, default=2, help="figures are means over so many")
    parser.add_argument("--quick", action="store_true", help="8 replicas, one seed, a third of the requests")
    given = parser.parse_args()
    given.share = 1 / 3 if given.quick else 1.0
    if given.quick:
        given.seeds, given.fleets = 1, names(fleet.name for fleet in FLEETS if fleet.replicas == 8)
    for field, known in (("traces", _KINDS), ("fleets", fleets), ("policies", POLICIES)):
        chosen = getattr(given, field).split(",")
        if unknown := [name for name in chosen if name not in known]:
            parser.error(f"no such {field}: {names(unknown)}; there are {names(known)}")
        setattr(given, field, chosen)
    given.fleets = [fleets[name] for name in given.fleets]
    given.policies = tuple(dict.fromkeys((OURS, *given.policies, LEAST_LOADED)))
    return given


def main() -> None:
    given, cells = _given(), dict[Cell, Mapping[str, Figures]]()
    for cell, policies in measured(given):
        cells[cell] = policies
        print(table(cell, policies), flush=True, end="\n\n")
    print(last_line(cells, NONE.name))


if __name__ == "__main__":
    main()
