"""The commands that only look: get, describe, logs."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from deepinfer.cli import views
from deepinfer.cli.events import COLUMNS, event_row
from deepinfer.cli.failures import InvalidInput, NotFound, OperationFailed
from deepinfer.cli.options import DEFAULT_SERVER, Address, Format, Output, connect, print_json, tell_if_stale
from deepinfer.cli.tables import print_table
from deepinfer.cli.views import View

if TYPE_CHECKING:
    from deepinfer.cli.server import Server

LAST_EVENTS = 10
_WITHOUT_SPEC = ("name", "uid", "generation", "created_at", "status", "replica_list", "refusals", "conditions")


class Kind(StrEnum):
    """What there is to list."""

    DEPLOYMENTS = "deployments"
    REPLICAS = "replicas"
    NODES = "nodes"


_TABLES: dict[Kind, tuple[tuple[str, ...], Callable[[View], list[str]]]] = {
    Kind.DEPLOYMENTS: (views.DEPLOYMENT_COLUMNS, views.deployment_row),
    Kind.REPLICAS: (views.REPLICA_COLUMNS, views.replica_row),
    Kind.NODES: (views.NODE_COLUMNS, views.node_row),
}


def get(
    kind: Annotated[Kind, typer.Argument(help="What to list.")],
    name: Annotated[str | None, typer.Argument(help="Only this one.")] = None,
    *,
    output: Format = Output.TABLE,
    server: Address = DEFAULT_SERVER,
) -> None:
    """List deployments, replicas or nodes."""
    with connect(server) as api:
        found = _all(api, kind) if name is None else [_one(api, kind, name)]
        tell_if_stale(api)
    if output is Output.JSON:
        print_json(found if name is None else found[0])
    else:
        columns, row = _TABLES[kind]
        print_table(columns, [row(view) for view in found])


def describe(
    name: Annotated[str, typer.Argument(help="The deployment's name.")],
    *,
    output: Format = Output.TABLE,
    server: Address = DEFAULT_SERVER,
) -> None:
    """Show everything about a deployment: its spec, its replicas, how it stands, and what happened."""
    with connect(server) as api:
        view = api.deployment(name)
        tell_if_stale(api)
        if output is Output.JSON:
            print_json(view)
            return
        _describe(view)
        _tell_events(api, name)


def logs(
    replica: Annotated[str, typer.Argument(help="A replica's id, or a deployment's name if it has one replica.")],
    *,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on as the log grows; Ctrl-C leaves.")] = False,
    tail: Annotated[int | None, typer.Option(min=0, metavar="N", help="Only the last N lines.")] = None,
    previous: Annotated[bool, typer.Option("--previous", help="The run before the last restart.")] = False,
    server: Address = DEFAULT_SERVER,
) -> None:
    """Print what a replica's engine wrote."""
    with connect(server) as api:
        replica_id = _replica_id(replica, api.replicas())
        try:
            for text in api.logs(replica_id, tail=tail, follow=follow, previous=previous):
                typer.echo(text, nl=False)
        except KeyboardInterrupt:
            if not follow:  # leaving a log that has no end is not a failure
                raise


def _all(api: Server, kind: Kind) -> list[View]:
    match kind:
        case Kind.DEPLOYMENTS:
            return api.deployments()
        case Kind.REPLICAS:
            return api.replicas()
        case Kind.NODES:
            return api.nodes()


def _one(api: Server, kind: Kind, name: str) -> View:
    if kind is Kind.DEPLOYMENTS:
        return api.deployment(name)
    key = "id" if kind is Kind.REPLICAS else "name"
    for view in _all(api, kind):
        if view[key] == name:
            return view
    raise NotFound(f"There is no {kind.value.removesuffix('s')} {name!r}; `deepinfer get {kind.value}` lists them.")


def _replica_id(name: str, replicas: list[View]) -> str:
    """The id itself, or the only replica of a deployment of that name."""
    if any(replica["id"] == name for replica in replicas):
        return name
    of_deployment = [replica["id"] for replica in replicas if replica["deployment"] == name]
    if not of_deployment:
        raise NotFound(f"There is no replica {name!r}; `deepinfer get replicas` lists them.")
    if len(of_deployment) > 1:
        raise InvalidInput(f"{name} has {len(of_deployment)} replicas; name one of {', '.join(of_deployment)}.")
    return str(of_deployment[0])


def _describe(view: View) -> None:
    from deepinfer.cli.description import spec_lines

    status = view["status"]
    head = {"Name": view["name"], "Generation": view["generation"], "Created": view["created_at"]}
    for label, value in head.items():
        typer.echo(f"{label + ':':<12}{value}")
    message = f": {status['message']}" if status["message"] else ""
    typer.echo(f"{'Status:':<12}{status['phase']}, {status['ready']} of {status['wanted']} ready{message}")
    typer.echo("Spec:")
    for line in spec_lines({field: value for field, value in view.items() if field not in _WITHOUT_SPEC}):
        typer.echo(f"  {line}")
    if view["refusals"]:
        typer.echo("Refused by:")
        for node, reason in view["refusals"].items():
            typer.echo(f"  {node}: {reason}")
    typer.echo("Replicas:" if view["replica_list"] else "Replicas:   none")
    if view["replica_list"]:
        print_table(views.REPLICA_COLUMNS, [views.replica_row(r) for r in views.replicas_of(view)])
    if view["conditions"]:
        typer.echo("Conditions:")
        print_table(views.CONDITION_COLUMNS, [views.condition_row(condition) for condition in view["conditions"]])


def _tell_events(api: Server, name: str) -> None:
    """They are read from the store itself, which may be away while everything else is known."""
    try:
        found = api.events(f"deployments/{name}", LAST_EVENTS)
    except OperationFailed as error:
        typer.echo(f"Events:     {error}")
        return
    typer.echo("Events:" if found else "Events:     none in the last hour")
    if found:
        print_table(COLUMNS, [event_row(event) for event in found])
