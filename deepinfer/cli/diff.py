"""`diff`: what a file would change, in the deployments and in where they run. Nothing is written."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from deepinfer.cli.differences import Difference, differences
from deepinfer.cli.failures import NotFound, OperationFailed, ServerNotReachable
from deepinfer.cli.foresight import foreseen_lines
from deepinfer.cli.names import deployment_name
from deepinfer.cli.options import DEFAULT_SERVER, Address, Format, Output, connect, print_json
from deepinfer.cli.views import View

if TYPE_CHECKING:
    from deepinfer.cli.server import Server


def diff(
    file: Annotated[str, typer.Option("--file", "-f", help="YAML or TOML; - reads YAML from stdin.")],
    *,
    output: Format = Output.TABLE,
    server: Address = DEFAULT_SERVER,
) -> None:
    """Show what `apply` would change, each deployment by itself. Exit code 0: nothing, 1: something."""
    from deepinfer.cli.documents import read_deployments

    documents = read_deployments(file)
    with connect(server) as api:
        try:
            found = [_compared(api, document) for document in documents]
        except OperationFailed as error:  # its exit code would say that something differs
            raise ServerNotReachable(str(error)) from error
    if output is Output.JSON:
        print_json([view | {"differences": [d._asdict() for d in changed]} for view, changed in found])
    else:
        for view, changed in found:
            _print(view, changed)
    if any(view["changes"] for view, _ in found):
        raise typer.Exit(1)


def _compared(api: Server, document: View) -> tuple[View, list[Difference]]:
    name = document.get("name") or deployment_name(document["model"])
    told = api.put(name, {field: value for field, value in document.items() if field != "name"}, dry_run=True)
    try:
        before = api.deployment(name)
    except NotFound:
        before = {}
    return told, differences(before, told["spec"])


def _print(view: View, changed: list[Difference]) -> None:
    if not view["changes"]:
        return
    before = view["generation"] - 1
    typer.echo(f"{view['name']}: generation {before} -> {before + 1}" if before else f"{view['name']}: new")
    for difference in changed:
        if before or difference.after not in (None, {}, []):
            typer.echo(f"  {difference.line()}" if before else f"  {difference.field}: {difference.after}")
    for line in foreseen_lines(view["foreseen"], with_kept=False):
        typer.echo(line)
