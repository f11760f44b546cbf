"""Options that several commands share, and the two things done with them: reach the server, print the answer.

This module and every module with a command in it import nothing slow: `deepinfer --help` and the start of the
long-lived processes must not wait for an HTTP client.
"""

from __future__ import annotations

import json
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from deepinfer.cli.server import Server

DEFAULT_SERVER = "http://127.0.0.1:8082"


class Output(StrEnum):
    """How an answer is printed."""

    TABLE = "table"
    JSON = "json"


Address = Annotated[
    str, typer.Option("--server", envvar="DEEPINFER_SERVER", metavar="URL", help="The deepinfer server to talk to.")
]
Format = Annotated[Output, typer.Option("--output", "-o", help="json is for scripts: the API's own objects.")]
Wait = Annotated[bool, typer.Option("--wait/--no-wait", help="Wait for the outcome, or return at once.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only show what would happen, and where.")]
Timeout = Annotated[float, typer.Option("--timeout", metavar="SECONDS", min=0, help="How long to wait at most.")]
ConfigFile = Annotated[str | None, typer.Option("--config", "-c", metavar="FILE", help="A TOML configuration file.")]
Etcd = Annotated[
    list[str] | None, typer.Option("--etcd", metavar="HOST:PORT", help="An etcd endpoint; may be given several times.")
]


def connect(address: str) -> Server:
    from deepinfer.cli.server import Server

    return Server(address)


def print_json(value: Any) -> None:
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False))


def tell_if_stale(api: Server) -> None:
    """On stderr: what was answered is not new."""
    if api.stale_since:
        typer.echo(
            f"Last known at {api.stale_since}: the server's store is away; see `deepinfer fleet status`.", err=True
        )
