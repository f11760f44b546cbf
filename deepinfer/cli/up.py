"""`up`: everything on this machine with one command; Ctrl-C ends everything. `fleet_here` runs what is asked here."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from deepinfer.cli.failures import InvalidInput
from deepinfer.cli.options import ConfigFile
from deepinfer.cli.up_plan import Plan


def up(
    model: Annotated[str, typer.Argument(help="What to run.")] = "smollm2",
    *,
    engine: Annotated[str, typer.Option(help="What computes: layer-shard, sim or vllm.")] = "layer-shard",
    device: Annotated[str, typer.Option(help="auto, cpu, or cuda:0.")] = "auto",
    port: Annotated[int | None, typer.Option(min=1, max=65535, help="The endpoint's port.  [default: 8082]")] = None,
    config: ConfigFile = None,
) -> None:
    """Start everything on this machine and run a model; Ctrl-C ends everything."""
    import asyncio

    from deepinfer.cli.fleet_here import run
    from deepinfer.fleet.config import InvalidConfig, load_config

    try:
        serve = load_config(Path(config) if config else None).serve
    except InvalidConfig as error:
        raise InvalidInput(str(error)) from error
    spec = {"model": model, "engine": engine, "device": device}
    plan = Plan(model, spec, serve.host, port or serve.port or 8082, config, serve.requires_keys)
    asyncio.run(run(plan))
