"""`deepinfer fleet`: which fleet the store holds, and a person's word that a new store is the right one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from deepinfer.cli.failures import OperationFailed
from deepinfer.cli.options import DEFAULT_SERVER, Address, Format, Output, connect, print_json

if TYPE_CHECKING:
    from deepinfer.cli.views import View

fleet = typer.Typer(help="Show the fleet's identity, and accept another store for it.", no_args_is_help=True)


@fleet.command("status")
def status(*, output: Format = Output.TABLE, server: Address = DEFAULT_SERVER) -> None:
    """Show which fleet this is, and whether its store can be relied upon: etcd's alarms, too."""
    with connect(server) as api:
        view = api.fleet()
    if output is Output.JSON:
        print_json(view)
    else:
        _show(view)


@fleet.command("confirm")
def confirm(
    *,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    output: Format = Output.TABLE,
    server: Address = DEFAULT_SERVER,
) -> None:
    """Say that the store that answers now is the right one, after it was wiped, restored elsewhere or exchanged.

    The nodes that wait go by it from then on: engines that it does not want are stopped.
    """
    with connect(server) as api:
        before = api.fleet()
        if not yes and (before["trouble"] or before["waiting_nodes"]):
            _show(before, err=True)
            typer.confirm("Go by this store, and stop the engines that it does not want?", abort=True, err=True)
        view = api.confirm_fleet()
    if output is Output.JSON:
        print_json(view)
    elif view["trouble"]:
        raise OperationFailed(view["trouble"])
    else:
        typer.echo(f"this is fleet {view['id']}; the nodes that waited follow it")


def _show(view: View, *, err: bool = False) -> None:
    typer.echo(f"{'Fleet:':<12}{view['id']}", err=err)
    typer.echo(f"{'Store:':<12}{store_sentence(view)}", err=err)
    for node, trouble in view["waiting_nodes"].items():
        typer.echo(f"{node} waits: {trouble}", err=err)


def store_sentence(view: View) -> str:
    """Whether it can be relied upon. One that is away may be sound: nobody can tell."""
    if not view["stale_since"]:
        return view["alarm"] or "sound"
    trouble = " ".join(filter(None, [view["trouble"], view["alarm"]])) or "away; the log of serve says why"
    return f"{trouble} (known is what was there at {view['stale_since']})"
