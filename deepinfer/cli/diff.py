"""`diff`: what a file would change, in the deployments and in where they run. Nothing is written."""

from __future__ import annotations

from typing import Annotated

import typer

from deepinfer.cli.differences import Difference, differences
from deepinfer.cli.failures import OperationFailed, ServerNotReachable
from deepinfer.cli.foresight import foreseen_lines, other_lines, own_part
from deepinfer.cli.options import DEFAULT_SERVER, Address, Format, Output, connect, print_json, tell_if_stale
from deepinfer.cli.patience import FORESEEING, patience
from deepinfer.cli.views import View


def diff(
    file: Annotated[str, typer.Option("--file", "-f", help="YAML or TOML; - reads YAML from stdin.")],
    *,
    output: Format = Output.TABLE,
    server: Address = DEFAULT_SERVER,
) -> None:
    """Show what `apply` would change. Exit code 0: nothing, 1: something."""
    from deepinfer.cli.documents import read_deployments

    documents = read_deployments(file)
    with connect(server) as api:
        try:
            with patience(FORESEEING):
                told = api.foreseen(documents)
            known = {view["name"]: view for view in api.deployments()}
        except OperationFailed as error:  # its exit code would say that something differs
            raise ServerNotReachable(str(error)) from error
        tell_if_stale(api)
    found = [(change, differences(known.get(change["name"], {}), change["spec"])) for change in told["data"]]
    if output is Output.JSON:
        print_json(told | {"data": [c | {"differences": [d._asdict() for d in changed]} for c, changed in found]})
    else:
        for change, changed in found:
            _print(change, changed, foreseen_lines(own_part(told, change["name"]), with_kept=False))
        for line in other_lines(told):
            typer.echo(line)
    if any(change["changes"] for change, _ in found):
        raise typer.Exit(1)


def _print(change: View, changed: list[Difference], foreseen: list[str]) -> None:
    """Of one that stays as it is, what the others do to it."""
    from deepinfer.cli.description import spec_lines

    before = change["generation"] - 1
    if change["changes"]:
        typer.echo(f"{change['name']}: generation {before} -> {before + 1}" if before else f"{change['name']}: new")
        lines = [difference.line() for difference in changed] if before else spec_lines(change["spec"])
        foreseen = [*(f"  {line}" for line in lines), *foreseen]
    elif foreseen:
        typer.echo(f"{change['name']}: unchanged")
    for line in foreseen:
        typer.echo(line)
