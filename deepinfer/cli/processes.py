"""`serve` and `worker`: this process becomes the control plane or a node's agent; nothing of the command line stays."""

from __future__ import annotations

import os
import socket
import sys
from typing import Annotated

import typer

from deepinfer.cli.names import node_name
from deepinfer.cli.options import ConfigFile, Etcd

CONTROL_PLANE = "deepinfer.control_plane"
AGENT = "deepinfer.agent"


def serve(
    *,
    config: ConfigFile = None,
    host: Annotated[str | None, typer.Option(help="The address to listen on.  [default: 127.0.0.1]")] = None,
    port: Annotated[int | None, typer.Option(help="The port; 0 lets the system choose.  [default: 8082]")] = None,
    authentication: Annotated[
        bool | None,
        typer.Option(
            "--with-authentication/--without-authentication",
            help="Whether API keys are required.  [default: unless the address is loopback]",
        ),
    ] = None,
    gateways: Annotated[
        int | None, typer.Option(help="Gateway processes that share the port, for more cores.  [default: 1]")
    ] = None,
    etcd: Etcd = None,
) -> None:
    """Run the control plane: the OpenAI endpoint, the router, the scheduler and the management API."""
    flags = [*_flag("-c", config), *_flag("--host", host), *_flag("--port", port), *_flag("--gateways", gateways)]
    flags += [] if authentication is None else [f"--{'with' if authentication else 'without'}-authentication"]
    _become(module_command(CONTROL_PLANE, *flags, *_etcd_flags(etcd)))


def worker(
    *,
    name: Annotated[str | None, typer.Option("--name", "-n", help="The node's name.  [default: hostname]")] = None,
    config: ConfigFile = None,
    etcd: Etcd = None,
    state_dir: Annotated[str | None, typer.Option(metavar="DIR", help="Where the agent keeps its records.")] = None,
    label: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="A label of this node; may be given several times.")
    ] = None,
    max_vram_mb: Annotated[
        str | None, typer.Option("--max-vram-mb", metavar="MB", help="Memory that each device offers at most.")
    ] = None,
    drain: Annotated[
        bool, typer.Option("--drain", help="At SIGTERM, wait until what runs here has been moved to other nodes.")
    ] = False,
) -> None:
    """Run this machine's agent: it starts and watches the engines placed here."""
    flags = ["-n", name or node_name(socket.gethostname()), *_flag("-c", config), *_flag("--state-dir", state_dir)]
    flags += [part for each in label or () for part in ("--label", each)]
    flags += _flag("--max-vram-mb", max_vram_mb)
    flags += ["--drain"] if drain else []
    _become(module_command(AGENT, *flags, *_etcd_flags(etcd)))


def module_command(module: str, *arguments: str) -> list[str]:
    """-P: a file in the current folder must not pass for one of our modules."""
    return [sys.executable, "-P", "-m", module, *arguments]


def _become(command: list[str]) -> None:
    os.execv(command[0], command)  # noqa: S606 - no shell wanted


def _flag(option: str, value: object) -> list[str]:
    return [] if value is None else [option, str(value)]


def _etcd_flags(endpoints: list[str] | None) -> list[str]:
    return ["--etcd", *endpoints] if endpoints else []
