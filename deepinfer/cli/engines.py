"""`deepinfer engine`: the engines of the machine it is typed on. It needs no server; a running worker notices."""

from __future__ import annotations

import asyncio
import os
import signal
from typing import TYPE_CHECKING, Annotated

import typer

from deepinfer.cli.failures import InvalidInput, NotFound, OperationFailed
from deepinfer.cli.options import Format, Output, print_json
from deepinfer.cli.tables import print_table
from deepinfer.fleet.sizes import size

if TYPE_CHECKING:
    from deepinfer.cli.engine_rows import EngineRow
    from deepinfer.fleet.resources import InstalledEngine

engine = typer.Typer(help="Install, list and remove engines on this machine.", no_args_is_help=True)


@engine.command("install")
def install(
    name: Annotated[str, typer.Argument(help="The engine: vllm.", metavar="ENGINE")],
    *,
    cpu: Annotated[bool, typer.Option("--cpu", help="For the CPU, also where there is a GPU.")] = False,
    version: Annotated[str | None, typer.Option(metavar="X.Y.Z", help="[default: what was tried last]")] = None,
    output: Format = Output.TABLE,
) -> None:
    """Make a Python environment with an engine in it; nothing is left of one that fails."""
    wanted = _wanted(name, cpu, version)
    row, is_new = asyncio.run(_installed(wanted))
    if output is Output.JSON:
        print_json(row.as_json())
    elif is_new:
        typer.echo(f"{row.name} is installed ({size(row.size_bytes)} in {row.path})")
        for package, without in row.removed.items():
            typer.echo(f"without {package}, which does not load here: {without}")
    else:
        typer.echo(f"{row.name} is installed already; nothing to do")


@engine.command("list")
def list_engines(*, output: Format = Output.TABLE) -> None:
    """Show this machine's engines: their versions, what they compute on, whether they are whole, their size."""
    from deepinfer.cli.engine_rows import COLUMNS, engine_rows
    from deepinfer.fleet.places import engines_dir

    rows = engine_rows(engines_dir())
    if output is Output.JSON:
        print_json([row.as_json() for row in rows])
    else:
        print_table(COLUMNS, [row.cells() for row in rows])


@engine.command("remove")
def remove(name: Annotated[str, typer.Argument(help="Its name in `deepinfer engine list`.")]) -> None:
    """Take an engine's environment off the disk; refused while a process runs from it."""
    from deepinfer.engine_environments.removal import NotRemoved
    from deepinfer.engine_environments.removal import remove as remove_environment
    from deepinfer.fleet.places import engines_dir

    typer.echo(f"removing {name}", err=True)  # it has 50,000 files
    try:
        remove_environment(engines_dir(), name)
    except NotRemoved as error:
        raise (NotFound if "There is no" in str(error) else OperationFailed)(str(error)) from error
    typer.echo(f"{name} is removed")


def _wanted(name: str, cpu: bool, version: str | None) -> InstalledEngine:
    from pydantic import TypeAdapter, ValidationError

    from deepinfer.engine_environments.compatibility import compatibility
    from deepinfer.fleet.resource import Version
    from deepinfer.fleet.resources import InstalledEngine
    from deepinfer.fleet.spec import EngineKind

    recipes = compatibility().install
    if name in ("sim", "layer-shard"):
        more = "" if name == "sim" else "; its libraries come with `pip install 'deepinfer[layer-shard]'`"
        raise InvalidInput(f"{name} is part of deepinfer and needs no environment{more}.")
    if name not in recipes:
        raise InvalidInput(f"There is no engine {name!r} to install; there is {', '.join(recipes)}.")
    accelerator = "cpu" if cpu else _accelerator()
    try:
        chosen = TypeAdapter(Version).validate_python(version or recipes[EngineKind(name)][accelerator].version)
        if chosen.replace(".", "").isdigit():
            chosen += ".0" * (2 - chosen.count("."))  # 0.32 is 0.32.0, and must not be installed beside it
    except ValidationError as error:
        raise InvalidInput(f"--version wants a version such as 0.32.0, not {version!r}.") from error
    return InstalledEngine(kind=EngineKind(name), version=chosen, accelerator=accelerator)


def _accelerator() -> str:
    """What fits this machine; said, because it could be a surprise."""
    from deepinfer.fleet.nvidia import nvidia_gpus

    gpus = nvidia_gpus(None)
    if gpus:
        typer.echo(f"for CUDA: this machine has {len(gpus)} of {gpus[0].name} (--cpu installs for the CPU)", err=True)
        return "cuda"
    typer.echo("for the CPU: no NVIDIA GPU was found on this machine", err=True)
    return "cpu"


async def _installed(wanted: InstalledEngine) -> tuple[EngineRow, bool]:
    from deepinfer.cli.engine_rows import row_of
    from deepinfer.cli.waiting import display
    from deepinfer.engine_environments.installation import install
    from deepinfer.fleet.places import engines_dir

    task = asyncio.current_task()
    assert task is not None  # noqa: S101 - for the type checker: a coroutine runs in a task
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup
            asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    try:
        with display() as shown:
            outcome = await install(wanted, engines_dir(), os.environ, shown.show)
    except asyncio.CancelledError as error:
        raise KeyboardInterrupt from error  # Ctrl-C, SIGTERM, a closed terminal: all is cleaned up by now
    return row_of(outcome.environment), outcome.is_new
