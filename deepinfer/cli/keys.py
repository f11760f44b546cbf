"""`deepinfer keys`: who may use this server. A secret is printed once, when its key is made."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deepinfer.cli.failures import InvalidInput, NotFound
from deepinfer.cli.options import DEFAULT_SERVER, Address, Format, Output, connect, print_json, tell_if_stale
from deepinfer.cli.tables import print_table

if TYPE_CHECKING:
    from deepinfer.cli.server import Server
    from deepinfer.cli.views import View

COLUMNS = ("ID", "NAME", "ROLE", "MODELS", "REQUESTS/MIN", "TOKENS/MIN", "STREAMS", "PRIORITY", "CREATED", "EXPIRES")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}

keys = typer.Typer(help="Make, list and revoke API keys.", no_args_is_help=True)


@keys.command("create")
def create(
    name: Annotated[str, typer.Argument(help="Whose key it is.")],
    *,
    admin: Annotated[bool, typer.Option("--admin", help="It opens the management API too.")] = False,
    model: Annotated[list[str] | None, typer.Option(help="A model it may use; several times.  [default: all]")] = None,
    requests_per_minute: Annotated[int | None, typer.Option(help="At most.")] = None,
    tokens_per_minute: Annotated[int | None, typer.Option(help="At most.")] = None,
    streams: Annotated[int | None, typer.Option(help="Answers at the same time, at most.")] = None,
    priority: Annotated[int | None, typer.Option(help="Of its requests, from -100 to 100.  [default: 0]")] = None,
    expires_in: Annotated[str | None, typer.Option(metavar="TIME", help="Such as 12h or 30d.")] = None,
    output: Format = Output.TABLE,
    server: Address = DEFAULT_SERVER,
) -> None:
    """Make an API key and print its secret, which nothing can tell again."""
    limits = {
        "requests_per_minute": requests_per_minute,
        "tokens_per_minute": tokens_per_minute,
        "concurrent_streams": streams,
    }
    fields: dict[str, Any] = {"name": name, "role": "admin" if admin else "user", "models": model, "limits": limits}
    fields |= {"priority": priority, "expires_in_seconds": expires_in and seconds_of(expires_in)}
    with connect(server) as api:
        view = api.create_key(fields)
    if output is Output.JSON:
        print_json(view)
    else:
        typer.echo(f"{name} is created with the id {view['id']}; its secret is told only now:", err=True)
        typer.echo(view["secret"])


@keys.command("list")
def list_keys(*, output: Format = Output.TABLE, server: Address = DEFAULT_SERVER) -> None:
    """List API keys, without what opens anything."""
    with connect(server) as api:
        found = api.keys()
        tell_if_stale(api)
    if output is Output.JSON:
        print_json(found)
    else:
        print_table(COLUMNS, [key_row(view) for view in found])


@keys.command("revoke")
def revoke(
    key: Annotated[str, typer.Argument(metavar="ID|NAME", help="The key's id, or its name.")],
    *,
    output: Format = Output.TABLE,
    server: Address = DEFAULT_SERVER,
) -> None:
    """Let an API key open nothing any more, within a second."""
    with connect(server) as api:
        answer = api.revoke_key(_id_of(api, key))
    if output is Output.JSON:
        print_json(answer)
    else:
        typer.echo(f"{key} is revoked")


def key_row(view: View) -> list[str]:
    limits = view["limits"]
    limited = (limits.get(part) for part in ("requests_per_minute", "tokens_per_minute", "concurrent_streams"))
    return [
        view["id"],
        view["name"],
        view["role"],
        ", ".join(view["models"]) or "all",
        *("-" if most is None else str(most) for most in limited),
        str(view["priority"]),
        view["created_at"],
        view["expires_at"] or "-",
    ]


def seconds_of(time: str) -> int:
    """Of words such as 90s, 12h or 30d."""
    found = re.fullmatch(r"(\d{1,9})([smhdw])", time)
    if found is None:
        raise InvalidInput(f"--expires-in {time} is no time; write a number and s, m, h, d or w, such as 30d.")
    return int(found[1]) * _SECONDS[found[2]]


def _id_of(api: Server, key: str) -> str:
    """An id goes before a name."""
    known = api.keys()
    if any(view["id"] == key for view in known) or re.fullmatch(r"[0-9a-f]{12}", key):
        return key
    found = [view["id"] for view in known if view["name"] == key]
    if len(found) > 1:
        raise InvalidInput(f"{len(found)} keys have the name {key}; give the id of one: {', '.join(found)}.")
    if not found:
        raise NotFound(f"There is no API key {key}; `deepinfer keys list` lists them.")
    return str(found[0])
