"""`events`: what happened in the last hour."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from deepinfer.cli.failures import NotFound
from deepinfer.cli.options import DEFAULT_SERVER, Address, Format, Output, connect, print_json
from deepinfer.cli.tables import print_table
from deepinfer.cli.views import View

if TYPE_CHECKING:
    from deepinfer.cli.server import Server

COLUMNS = ("TIME", "ABOUT", "REASON", "MESSAGE")


def events(
    name: Annotated[str | None, typer.Argument(help="Only of this deployment or node.")] = None,
    *,
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="How many of the newest.")] = 100,
    output: Format = Output.TABLE,
    server: Address = DEFAULT_SERVER,
) -> None:
    """Show what happened in the last hour, the newest last."""
    with connect(server) as api:
        found = api.events(None, limit) if name is None else _of(api, name, limit)
    if output is Output.JSON:
        print_json(found)
    elif found:
        print_table(COLUMNS, [event_row(event) for event in found])
    else:
        typer.echo("nothing happened in the last hour")


def event_row(event: View) -> list[str]:
    return [event["at"], event["about"], event["reason"], event["message"]]


def _of(api: Server, name: str, limit: int) -> list[View]:
    """Of what has this name; what is deleted may still have events."""
    found = [event for kind in ("deployments", "nodes") for event in api.events(f"{kind}/{name}", limit)]
    known = {view["name"] for view in (*api.deployments(), *api.nodes())} if not found else {name}
    if name not in known:
        raise NotFound(f"There is no deployment or node {name!r}, and nothing is known to have happened to one.")
    return sorted(found, key=lambda event: str(event["at"]))[-limit:]
