"""`rebalance`: replicas go where the fleet now has a better place; nothing moves by itself."""

from __future__ import annotations

from typing import Annotated

import typer

from deepinfer.cli.foresight import foreseen_lines
from deepinfer.cli.options import DEFAULT_SERVER, Address, Format, Output, connect, print_json
from deepinfer.cli.patience import patience


def rebalance(
    *,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would move.")] = False,
    output: Format = Output.TABLE,
    server: Address = DEFAULT_SERVER,
) -> None:
    """Move replicas that would now get a better place; each is replaced before it stops."""
    with connect(server) as api, patience("looking for better places"):
        told = api.rebalance(dry_run=dry_run)
    if output is Output.JSON:
        print_json(told)
        return
    if not told["moves"]:
        typer.echo("every replica has the best place there is for it; nothing moves")
        return
    typer.echo(f"{len(told['moves'])} {'would move' if dry_run else 'move'}; where it ends:")
    for line in foreseen_lines(told["foreseen"], with_kept=False):
        typer.echo(line)
