"""`explain`: why replicas are where they are, and what every device says to one more."""

from __future__ import annotations

from typing import Annotated

import typer

from deepinfer.cli.explained_request import explain_request
from deepinfer.cli.failures import InvalidInput
from deepinfer.cli.options import DEFAULT_SERVER, Address, Format, Output, connect, print_json, tell_if_stale
from deepinfer.cli.patience import patience
from deepinfer.cli.tables import print_table
from deepinfer.cli.views import View

_ROLES = {
    "prefill": "computes prompts for the decode replicas of its model, and answers nobody",
    "decode": "answers; a prefill replica of its model computes prompts first, where there is one and it pays",
}


def explain(
    name: Annotated[str, typer.Argument(help="The deployment's name, or the word request.")],
    request: Annotated[str, typer.Argument(metavar="[ID]", help="A request's id, as its X-Request-Id says.")] = "",
    *,
    output: Format = Output.TABLE,
    server: Address = DEFAULT_SERVER,
) -> None:
    """Show why a deployment's replicas are where they are, and for each device why or why not.

    `explain request ID` shows why a request went to its replica, and what each one would have cost.
    """
    if request:
        if name != "request":
            raise InvalidInput(f"Say `deepinfer explain {name}`, or `deepinfer explain request {request}`.")
        explain_request(request, output, server)
        return
    with connect(server) as api:
        with patience("asking the server for its reasons"):
            told = api.explanation(name)
        tell_if_stale(api)
    if output is Output.JSON:
        print_json(told)
    else:
        _print(told)


def _print(told: View) -> None:
    if told["missing"]:
        waits = f"; waits for {told['waits_for']}" if told["waits_for"] else ""
        typer.echo(f"{told['missing']} of {told['name']} without a place{waits}")
    if words := _ROLES.get(told.get("role", "")):
        typer.echo(f"role {told['role']}: {words}")
    if told["replicas"]:
        rows = [[r["id"], r["node"], ",".join(r["devices"]), r["why"]] for r in told["replicas"]]
        print_table(("REPLICA", "NODE", "DEVICES", "WHY"), rows)
    else:
        typer.echo(f"{told['name']} has no replicas")
    if not told["nodes"]:
        typer.echo("no node is connected; start one with `deepinfer worker -n NAME`")
        return
    typer.echo("\nOne more would find:")
    print_table(("RANK", "NODE", "DEVICES", "FITS", "WHY NOT"), [_node_row(node) for node in told["nodes"]])
    typer.echo("\nEach device by itself:")
    rows = [
        [node["node"], device["device"], "yes" if device["free"] else "no", device["reason"]]
        for node in told["nodes"]
        for device in node["device_verdicts"]
    ]
    print_table(("NODE", "DEVICE", "FREE", "WHY NOT"), rows)


def _node_row(node: View) -> list[str]:
    rank = "-" if node["rank"] is None else str(node["rank"])
    fits = "yes" if node["fits"] else "no"
    return [rank, node["node"], ",".join(node["devices"]) or "-", fits, node["reason"]]
