"""The commands that change what should run: deploy, apply, delete."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import typer

from deepinfer.cli import spec_options as spec
from deepinfer.cli.foresight import all_dry_run_lines, dry_run_lines
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
)
from deepinfer.cli.patience import FORESEEING, patience
from deepinfer.cli.views import View, progress_of, replicas_of

if TYPE_CHECKING:
    from deepinfer.cli.server import Server


def deploy(
    context: typer.Context,
    model: spec.Model,
    *,
    name: spec.Name = None,
    engine: spec.Engine = None,
    engine_version: spec.EngineVersion = None,
    backend: spec.Backend = None,
    docker_image: spec.DockerImage = None,
    docker: spec.Docker = None,
    model_path: spec.ModelPath = None,
    device: spec.Device = None,
    tensor_parallel_size: spec.TensorParallelSize = None,
    gpu_memory_utilization: spec.GpuMemoryUtilization = None,
    replicas: spec.Replicas = None,
    dtype: spec.Dtype = None,
    quantization: spec.Quantization = None,
    max_model_len: spec.MaxModelLen = None,
    engine_arg: spec.EngineArg = None,
    env: spec.Env = None,
    priority: spec.Priority = None,
    node_selector: spec.NodeSelector = None,
    anti_affinity: spec.AntiAffinity = None,
    strategy: spec.Strategy = None,
    routing: spec.Routing = None,
    role: spec.Role = None,
    stages: spec.Stages = None,
    spares: spec.Spares = None,
    stage_layers: spec.StageLayers = None,
    max_surge: spec.MaxSurge = None,
    max_unavailable: spec.MaxUnavailable = None,
    rollout_deadline: spec.RolloutDeadline = None,
    new_generation_percent: spec.NewGenerationPercent = None,
    dry_run: DryRun = False,
    wait: Wait = True,
    timeout: Timeout = 900,
    output: Format = Output.TABLE,
    server: Address = DEFAULT_SERVER,
) -> None:
    """Run a model: create a deployment and wait until it is ready."""
    fields = spec.fields_of(context.params)  # the spec's options, by their names above
    with connect(server) as api:
        if dry_run:
            with patience(FORESEEING):
                view = api.create(fields, dry_run=True)
            _report(view, output, dry_run_lines)
            return
        view = api.create(fields)
        _report(_waited(api, view, timeout) if wait else view, output, _progress_lines)


def apply(
    file: Annotated[str, typer.Option("--file", "-f", help="YAML or TOML; - reads YAML from stdin.")],
    *,
    dry_run: DryRun = False,
    wait: Wait = False,
    timeout: Timeout = 900,
    output: Format = Output.TABLE,
    server: Address = DEFAULT_SERVER,
) -> None:
    """Make deployments be as a file says, all at once: create what is missing, change what differs."""
    from deepinfer.cli.documents import read_deployments

    documents = read_deployments(file)
    with connect(server) as api:
        if dry_run:
            with patience(FORESEEING):
                told = api.foreseen(documents)
            _report(told, output, all_dry_run_lines)
            return
        before = {view["name"]: view["generation"] for view in api.deployments()}
        views = api.put_all(documents)
        if output is not Output.JSON:
            for view in views:
                typer.echo(f"{view['name']} {_change(before.get(view['name']), view['generation'])}")
        if wait:
            views = [_waited(api, view, timeout) for view in views]
    if output is Output.JSON:
        print_json(views)


def delete(
    name: Annotated[str, typer.Argument(help="The deployment's name.")],
    *,
    wait: Wait = True,
    timeout: Timeout = 120,
    output: Format = Output.TABLE,
    server: Address = DEFAULT_SERVER,
) -> None:
    """Delete a deployment; its replicas finish what runs, then stop."""
    with connect(server) as api:
        replicas = {replica["id"] for replica in replicas_of(api.deployment(name))}
        answer = api.delete(name)
        if wait:
            from deepinfer.cli.waiting import wait_until_gone

            wait_until_gone(api, name, replicas, timeout)
    if output is Output.JSON:
        print_json(answer)
    else:
        typer.echo(f"{name} is deleted" if wait else f"{name} is being deleted")


def _change(before: int | None, after: int) -> str:
    if before is None:
        return "created"
    return "unchanged" if before == after else f"changed (generation {after})"


def _waited(api: Server, view: View, timeout: float) -> View:
    from deepinfer.cli.waiting import wait_until_ready

    return wait_until_ready(api, view["name"], timeout)


def _report(view: View, output: Output, lines_of: Callable[[View], list[str]]) -> None:
    if output is Output.JSON:
        print_json(view)
    else:
        typer.echo("\n".join(lines_of(view)))


def _progress_lines(view: View) -> list[str]:
    return [progress_of(view).sentence]
