"""`deepinfer alias`: other names for deployments, their requests split by weight."""

from __future__ import annotations

import re
from typing import Annotated

import typer

from deepinfer.cli.failures import InvalidInput
from deepinfer.cli.options import DEFAULT_SERVER, Address, Format, Output, connect, print_json, tell_if_stale
from deepinfer.cli.tables import print_table
from deepinfer.cli.views import View

Name = Annotated[str, typer.Argument(help='What a request\'s "model" says, such as gpt-4o or org/model.')]

alias = typer.Typer(help="Other names for deployments.", no_args_is_help=True)


@alias.command("set")
def set_alias(
    name: Name,
    targets: Annotated[list[str], typer.Argument(metavar="DEPLOYMENT[=WEIGHT]...", help="Where its requests go.")],
    *,
    output: Format = Output.TABLE,
    server: Address = DEFAULT_SERVER,
) -> None:
    """Give deployments another name, or change which ones have it: `alias set chat chat-v1=9 chat-v2=1`."""
    asked = targets_of(targets)
    with connect(server) as api:
        view = api.set_alias(name, asked)
    if output is Output.JSON:
        print_json(view)
    else:
        typer.echo(f"{name} is {split_words(view)}")


@alias.command("list")
def list_aliases(*, output: Format = Output.TABLE, server: Address = DEFAULT_SERVER) -> None:
    """List the aliases."""
    with connect(server) as api:
        found = api.aliases()
        tell_if_stale(api)
    if output is Output.JSON:
        print_json(found)
    else:
        print_table(("NAME", "TARGETS", "MESSAGE"), [[v["name"], split_words(v), v["message"]] for v in found])


@alias.command("remove")
def remove(name: Name, *, output: Format = Output.TABLE, server: Address = DEFAULT_SERVER) -> None:
    """Free a name; its deployments are left as they are."""
    with connect(server) as api:
        answer = api.remove_alias(name)
    if output is Output.JSON:
        print_json(answer)
    else:
        typer.echo(f"{name} is no alias any more")


def targets_of(given: list[str]) -> list[View]:
    """DEPLOYMENT or DEPLOYMENT=WEIGHT, each."""
    targets: list[View] = []
    for text in given:
        deployment, equals, weight = text.partition("=")
        if not deployment or (equals and not re.fullmatch("[0-9]{1,9}", weight)):
            raise InvalidInput(f"{text!r} is no target; write DEPLOYMENT or DEPLOYMENT=WEIGHT, such as chat=9.")
        targets.append({"deployment": deployment, "weight": int(weight) if equals else 1})
    return targets


def split_words(view: View) -> str:
    """Who gets how much of it."""
    targets = view["targets"]
    if len(targets) == 1:
        return str(targets[0]["deployment"])
    total = sum(target["weight"] for target in targets)
    return ", ".join(f"{target['deployment']} {100 * target['weight'] / total:.3g} %" for target in targets)
