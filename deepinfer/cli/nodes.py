"""What people decide about nodes: cordon, uncordon, drain, node lost, node forget."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated

import typer

from deepinfer.cli.failures import OperationFailed
from deepinfer.cli.options import DEFAULT_SERVER, Address, Format, Output, Timeout, Wait, connect, print_json
from deepinfer.cli.views import View

if TYPE_CHECKING:
    from deepinfer.cli.server import Server

Name = Annotated[str, typer.Argument(help="The node's name.", metavar="NODE")]

node = typer.Typer(help="What is to become of a node that is not connected.", no_args_is_help=True)


def cordon(name: Name, *, output: Format = Output.TABLE, server: Address = DEFAULT_SERVER) -> None:
    """Let nothing new go to a node; what runs there stays."""
    _decided(name, "cordon", output, server)


def uncordon(name: Name, *, output: Format = Output.TABLE, server: Address = DEFAULT_SERVER) -> None:
    """Let a node take replicas again, after cordon, drain or node lost."""
    _decided(name, "uncordon", output, server)


def drain(
    name: Name,
    *,
    wait: Wait = True,
    timeout: Timeout = 900,
    output: Format = Output.TABLE,
    server: Address = DEFAULT_SERVER,
) -> None:
    """Empty a node: each replica is replaced elsewhere, then stopped; what has no other place stays."""
    with connect(server) as api:
        view = api.decide(name, "drain")
        if wait:
            view = _emptied(api, name, timeout)
    if output is Output.JSON:
        print_json(view)
    else:
        typer.echo(f"{name} is drained" if wait else f"{name} is {view['state']}")


@node.command("lost")
def lost(name: Name, *, output: Format = Output.TABLE, server: Address = DEFAULT_SERVER) -> None:
    """Say that a node will not come back: what ran there is replaced at once."""
    _decided(name, "lost", output, server)


@node.command("forget")
def forget(name: Name, *, output: Format = Output.TABLE, server: Address = DEFAULT_SERVER) -> None:
    """Keep nothing more of a node that was called lost."""
    with connect(server) as api:
        answer = api.forget_node(name)
    if output is Output.JSON:
        print_json(answer)
    else:
        typer.echo(f"{name} is forgotten")


def _decided(name: str, decision: str, output: Output, server: str) -> None:
    with connect(server) as api:
        view = api.decide(name, decision)
    if output is Output.JSON:
        print_json(view)
    else:
        typer.echo(f"{name} is {view['state']}")


def _emptied(api: Server, name: str, timeout: float) -> View:
    from deepinfer.cli.waiting import LOOK_EVERY_SECONDS, display

    deadline = time.monotonic() + timeout
    with display() as shown:
        while (view := api.node(name))["replicas"]:
            sentence = f"{name}: {left_sentence(view, api.replicas(), api.deployments())}"
            if time.monotonic() >= deadline:
                raise OperationFailed(
                    f"{sentence}; not drained after {timeout:g} s, and it goes on: "
                    f"`deepinfer get nodes {name}` shows what is left, `deepinfer uncordon {name}` takes it back."
                )
            shown.show(sentence)
            time.sleep(LOOK_EVERY_SECONDS)
    return view


def left_sentence(node: View, replicas: list[View], deployments: list[View]) -> str:
    """What is left on a node that is drained, and why the first of it is."""
    left = [replica for replica in replicas if replica["node"] == node["name"]]
    if not left:
        return f"{len(node['replicas'])} left"
    first = min(left, key=lambda replica: (replica["intent"] == "drain", replica["id"]))
    status = next((d["status"] for d in deployments if d["name"] == first["deployment"]), None)
    if not node["alive"]:
        doing = "waits for its node, which is not connected"
    elif first["intent"] == "drain":
        doing = "finishes what runs"
    elif status and status["phase"] == "refused":
        doing = f"has no other place: {status['message']}"
    else:
        doing = "serves until another one is ready"
    more = f"; {len(left) - 1} more" if len(left) > 1 else ""
    return f"{first['id']} {doing}{more}"
