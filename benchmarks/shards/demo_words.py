"""What the demo shows: who has which layers, and what was predicted beside what was measured. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.table import Table
from rich.text import Text

from deepinfer.fleet.model_shape import ModelShape
from deepinfer.fleet.pipeline import Layers, Layout
from deepinfer.fleet.sizes import size
from deepinfer.planning.plan import Plan, plan_by_hand
from deepinfer.planning.task import OfferedDevice, Task

COLOURS = {"a": "cyan", "b": "magenta", "c": "yellow"}


@dataclass(frozen=True)
class Measured:
    """Of one answer, or of several at once."""

    first: float  # seconds until the first token
    token: float  # seconds from a token to the next, the median
    rate: float  # tokens a second


def parts_of(layout: Layout) -> list[tuple[str, Layers]]:
    """Worker and layers, in the pipeline's order."""
    return [(layout.node, layout.layers), *((seat.node, seat.layers) for seat in layout.seats)]


def planned(shape: ModelShape, layout: Layout, caps_mb: dict[str, int], task: tuple[int, int]) -> Plan | None:
    """What deepinfer's planner predicts of this very layout; `task` is context and requests at once."""
    parts = parts_of(layout)
    context, concurrency = task
    devices = tuple(OfferedDevice(name=node, memory_bytes=caps_mb[node] * 1_000_000, kind="cpu") for node, _ in parts)
    made = plan_by_hand(
        Task(model=shape, devices=devices, context=context, concurrency=concurrency),
        [stop - start for _, (start, stop) in parts],
    )
    return made if isinstance(made, Plan) else None


def layers_table(layout: Layout, plan: Plan | None, caps_mb: dict[str, int]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in ("stage", "worker", "cap", "layers", " " * parts_of(layout)[-1][1][1], "weights", "ms/token"):
        table.add_column(column, justify="right" if column in ("cap", "weights", "ms/token") else "left", no_wrap=True)
    for number, (node, (start, stop)) in enumerate(parts_of(layout)):
        stage = plan.stages[number] if plan else None
        table.add_row(
            str(number),
            Text(node, COLOURS[node]),
            f"{caps_mb[node]} MB",
            f"{start}-{stop - 1}",
            Text("·" * start + "█" * (stop - start), COLOURS[node]),
            size(stage.weight_bytes) if stage else "",
            f"{1000 * stage.seconds:.1f}" if stage else "",
        )
    return table


def speed_table(rows: Sequence[tuple[str, Plan | None, Measured]]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in ("", "predicted", "measured"):
        table.add_column(column, justify="left" if not column else "right")
    for name, plan, measured in rows:
        expected = plan.prediction if plan else None
        if expected and expected.requests_in_a_group == expected.groups == 1:
            table.add_row(
                f"ms per token, {name}", f"{1000 * expected.seconds_per_token:.1f}", f"{1000 * measured.token:.1f}"
            )
        rate = f"{expected.tokens_per_second:.0f}" if expected else ""
        table.add_row(f"tokens/s, {name}", rate, f"{measured.rate:.0f}")
    return table
