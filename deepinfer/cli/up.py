"""`up`: everything on this machine with one command; Ctrl-C ends everything. Here: what is asked, and what to do next.

`fleet_here` runs it.
"""

from __future__ import annotations

import json
import shlex
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from deepinfer.cli.failures import InvalidInput
from deepinfer.cli.names import deployment_name
from deepinfer.cli.options import DEFAULT_SERVER, ConfigFile
from deepinfer.cli.views import View


@dataclass(frozen=True)
class Plan:
    """What `up` will run."""

    model: str
    spec: View
    host: str
    port: int
    config: str | None

    @property
    def deployment(self) -> str:
        return deployment_name(self.model)

    @property
    def url(self) -> str:
        return f"http://[{self.host}]:{self.port}" if ":" in self.host else f"http://{self.host}:{self.port}"


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
    asyncio.run(run(Plan(model, spec, serve.host, port or serve.port or 8082, config)))


def welcome(plan: Plan, seconds: float) -> str:
    """What to do now. The curl line works as it is pasted."""
    body = {"model": plan.deployment, "messages": [{"role": "user", "content": "What is the capital of France?"}]}
    chat = [_this_command(), "chat", plan.deployment]
    if plan.url != DEFAULT_SERVER:
        chat += ["--server", plan.url]
    curl = f"curl {plan.url}/v1/chat/completions -H 'Content-Type: application/json' -d {shlex.quote(json.dumps(body))}"
    return (
        f"{plan.deployment} is ready after {seconds:.1f} s. The OpenAI endpoint is {plan.url}/v1\n\n"
        f"  {curl}\n\n"
        f"  {shlex.join(chat)}\n\n"
        "Ctrl-C ends everything."
    )


def _this_command() -> str:
    """`deepinfer` where the shell finds it, else the path it was called by."""
    return "deepinfer" if shutil.which("deepinfer") else sys.argv[0]
