"""`plan`: how a model would be cut into stages over several devices, and what that would do. Nothing is started."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deepinfer.cli.failures import InvalidInput, NotFound, OperationFailed
from deepinfer.cli.offered_devices import HOW_TO_WRITE, Fields, devices_of_nodes, typed_devices
from deepinfer.cli.options import DEFAULT_SERVER, Address, Format, Output, connect, print_json
from deepinfer.cli.patience import patience
from deepinfer.cli.tables import print_table
from deepinfer.fleet.sizes import bytes_of, size

if TYPE_CHECKING:
    from deepinfer.fleet.model_shape import ModelShape
    from deepinfer.planning.plan import Plan, StagePlan
    from deepinfer.planning.refusal import Refusal
    from deepinfer.planning.task import Task

_CONTEXT = 4096
_COLUMNS = ("STAGE", "DEVICE", "LAYERS", "WEIGHTS", "KV", "WORKING", "RESERVE", "FREE", "MS/TOKEN", "SPEED")


def plan(
    model: Annotated[str, typer.Argument(help="A model's folder, or a name whose files are on this machine.")],
    *,
    device: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=SIZE", help=f"May be given several times: {HOW_TO_WRITE}.  [default: the fleet's]"),
    ] = None,
    context: Annotated[
        int | None, typer.Option(metavar="TOKENS", min=1, help="Prompt and answer.  [default: 4096, or the model's]")
    ] = None,
    concurrency: Annotated[int, typer.Option(metavar="N", min=1, help="Requests at once.")] = 8,
    objective: Annotated[
        str | None, typer.Option(help="latency or throughput.  [default: latency for one request at once]")
    ] = None,
    reserve: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Kept free on each device.  [default: 1GiB, an eighth at most]")
    ] = None,
    dtype: Annotated[str, typer.Option(help="auto, float32, float16 or bfloat16.")] = "auto",
    layers: Annotated[
        str | None, typer.Option(metavar="N,N,…", help="How many layers each device carries, by hand: 5,13,14.")
    ] = None,
    hop_ms: Annotated[float, typer.Option(metavar="MS", min=0, help="From one stage to the next, one way.")] = 0.3,
    output: Format = Output.TABLE,
    server: Address = DEFAULT_SERVER,
) -> None:
    """Show how a model would lie over several devices: layers, bytes, speed, and why. Nothing is started."""
    from deepinfer.planning.plan import Plan

    shape = _shape(model, dtype)
    asked: Fields = {"context": context or min(_CONTEXT, shape.longest_context), "concurrency": concurrency}
    asked |= {"objective": objective, "hop_seconds": hop_ms / 1000, "reserve_bytes": _bytes(reserve)}
    task = _task(shape, typed_devices(device) if device else _of_the_fleet(server), asked)
    with patience("weighing the cuts"):
        made = _made(task, layers)
    if output is Output.JSON:
        print_json({"fits": isinstance(made, Plan), **made.model_dump(mode="json")})
    elif isinstance(made, Plan):
        _print(task, made)
    if not isinstance(made, Plan):
        raise OperationFailed("\n".join(made.sentences)) if output is Output.TABLE else typer.Exit(1)


def _made(task: Task, layers: str | None) -> Plan | Refusal:
    from deepinfer.planning.plan import LayersDoNotAddUp, plan_by_hand
    from deepinfer.planning.plan import plan as planned

    try:
        return planned(task) if layers is None else plan_by_hand(task, _counts(layers))
    except LayersDoNotAddUp as error:
        raise InvalidInput(str(error)) from error


def _shape(model: str, dtype: str) -> ModelShape:
    from deepinfer.fleet.errors import ModelCorrupt, ModelUnavailable
    from deepinfer.fleet.layer_shard_models import DTYPE_BYTES
    from deepinfer.fleet.models_here import model_here
    from deepinfer.fleet.places import cache_dir
    from deepinfer.planning.model_files import shape_of_folder

    if dtype not in ("auto", *DTYPE_BYTES):
        raise InvalidInput(f"dtype {dtype} is none; choose auto, {', '.join(DTYPE_BYTES)}.")
    try:
        folder = Path(model).expanduser()
        return shape_of_folder(folder if folder.is_dir() else model_here(model, cache_dir() / "models"), dtype)
    except ModelCorrupt:
        raise
    except ModelUnavailable as error:
        raise NotFound(str(error)) from error


def _task(shape: ModelShape, devices: list[Fields], asked: Fields) -> Task:
    from pydantic import ValidationError

    from deepinfer.planning.task import OfferedDevice, Task

    try:
        offered = tuple(OfferedDevice.model_validate(device) for device in devices)
        return Task.model_validate({"model": shape, "devices": offered, **asked})
    except ValidationError as error:
        wrong = error.errors()[0]
        raise InvalidInput(f"{wrong['loc'][-1] if wrong['loc'] else 'input'}: {wrong['msg']}.") from error


def _of_the_fleet(server: str) -> list[Fields]:
    with connect(server) as api:
        devices = devices_of_nodes(api.nodes())
    if not devices:
        raise InvalidInput(f"No node offers a device now; start a worker, or give --device: {HOW_TO_WRITE}.")
    return devices


def _bytes(text: str | None) -> int | None:
    try:
        return None if text is None else bytes_of(text)
    except ValueError as error:
        raise InvalidInput(f"--reserve: {error}.") from error


def _counts(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise InvalidInput(f'--layers "{text}" is no list of numbers; write one for each device: 5,13,14.') from error


def _print(task: Task, made: Plan) -> None:
    from deepinfer.planning.words import at_once

    model = task.model
    typer.echo(
        f"{model.architecture}, {model.layers} layers, {model.dtype}, {size(model.weight_bytes)} of weights; "
        f"{task.context:,} tokens for {at_once(task.concurrency)}.\n"
    )
    print_table(_COLUMNS, [_row(number, stage) for number, stage in enumerate(made.stages)])
    typer.echo(f"\n{_prediction(task, made)}")
    for sentence in (*made.why, *(left.why for left in made.left_out)):
        typer.echo(sentence)
    for warning in made.warnings:
        typer.echo(f"Warning: {warning}")


def _row(number: int, stage: StagePlan) -> list[str]:
    layers = f"{stage.start}-{stage.stop - 1}" if stage.layers > 1 else str(stage.start)
    parts = (stage.weight_bytes, stage.kv_bytes, stage.working_bytes, stage.reserve_bytes, stage.free_bytes)
    return [str(number), stage.device, layers, *map(size, parts), f"{1000 * stage.seconds:.2f}", stage.speed]


def _prediction(task: Task, made: Plan) -> str:
    from deepinfer.planning.words import at_once, milliseconds

    expected = made.prediction
    groups = f" ({expected.groups} groups of {expected.requests_in_a_group} in the pipeline)"
    return (
        f"Expected: {milliseconds(expected.seconds_per_token)} per token of a lone request, "
        f"{expected.tokens_per_second:,.0f} tokens/s with {at_once(task.concurrency)}"
        f"{groups if expected.groups > 1 else ''}. Room for {expected.kv_tokens:,} tokens."
    )
