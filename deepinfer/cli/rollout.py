"""`deepinfer rollout`: how far the newest generation of a deployment is, which there were, and back to one of them."""

from __future__ import annotations

import time
from contextlib import nullcontext
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deepinfer.cli.failures import OperationFailed
from deepinfer.cli.foresight import dry_run_lines
from deepinfer.cli.options import (
    DEFAULT_SERVER,
    Address,
    DryRun,
    Format,
    Output,
    Timeout,
    Wait,
    connect,
    print_json,
    tell_if_stale,
)
from deepinfer.cli.patience import FORESEEING, patience
from deepinfer.cli.tables import print_table
from deepinfer.cli.views import View, progress_of

if TYPE_CHECKING:
    from deepinfer.cli.server import Server

Name = Annotated[str, typer.Argument(help="The deployment's name.")]

rollout = typer.Typer(help="The generations of a deployment.", no_args_is_help=True)


@rollout.command("status")
def status(
    name: Name,
    *,
    wait: Wait = True,
    timeout: Timeout = 900,
    output: Format = Output.TABLE,
    server: Address = DEFAULT_SERVER,
) -> None:
    """Tell how far the newest generation is, and wait until it is complete. Exit code 1: it will not be."""
    with connect(server) as api:
        told = _finished(api, name, timeout) if wait else api.rollout(name)
        tell_if_stale(api)
    if output is Output.JSON:
        print_json(told)
    else:
        typer.echo(rollout_sentence(told))
    if told["outcome"] in ("stalled", "rolled-back"):
        raise OperationFailed(f"{name}: generation {told['generation']} is {told['outcome']}: {told['reason']}")


@rollout.command("history")
def history(name: Name, *, output: Format = Output.TABLE, server: Address = DEFAULT_SERVER) -> None:
    """List the generations that are kept, the newest last."""
    with connect(server) as api:
        found = api.revisions(name)
        tell_if_stale(api)
    if output is Output.JSON:
        print_json(found)
    else:
        print_table(("GENERATION", "CREATED", "STATE", "CAUSE"), [_revision_row(revision) for revision in found])


@rollout.command("undo")
def undo(
    name: Name,
    *,
    to: Annotated[int | None, typer.Option(min=1, metavar="GENERATION", help="[default: the one before]")] = None,
    dry_run: DryRun = False,
    wait: Wait = True,
    timeout: Timeout = 900,
    output: Format = Output.TABLE,
    server: Address = DEFAULT_SERVER,
) -> None:
    """Go back to an earlier generation, with as many replicas as now."""
    with connect(server) as api:
        with patience(FORESEEING) if dry_run else nullcontext():
            told: Any = api.undo(name, to, dry_run=dry_run)
        if wait and not dry_run:
            from deepinfer.cli.waiting import wait_until_ready

            told = wait_until_ready(api, name, timeout)
    if output is Output.JSON:
        print_json(told)
    elif dry_run:
        typer.echo("\n".join(dry_run_lines(told)))
    else:
        typer.echo(f"{name} is at generation {told['generation']}; {progress_of(told).sentence}")


def rollout_sentence(told: View) -> str:
    counts = f"{told['ready']} of {told['wanted']} ready, {told['updated']} updated, {told['old']} old"
    message = f": {told['message']}" if told["message"] else ""
    return f"{told['name']} generation {told['generation']} is {told['outcome']} ({counts}){message}"


def _finished(api: Server, name: str, timeout: float) -> View:
    from deepinfer.cli.waiting import LOOK_EVERY_SECONDS, display

    deadline = time.monotonic() + timeout
    with display() as shown:
        while (told := api.rollout(name))["outcome"] == "progressing":
            if time.monotonic() >= deadline:
                raise OperationFailed(f"{rollout_sentence(told)}; not complete after {timeout:g} s, and it goes on.")
            shown.show(rollout_sentence(told))
            time.sleep(LOOK_EVERY_SECONDS)
    return told


def _revision_row(revision: View) -> list[str]:
    states = [word for word, holds in (("newest", revision["is_newest"]), ("good", revision["is_good"])) if holds]
    return [str(revision["generation"]), revision["created_at"], ", ".join(states) or "-", revision["cause"]]
