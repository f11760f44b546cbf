"""The commands that change what should run: deploy, apply, delete."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from deepinfer.cli import spec_options as spec
from deepinfer.cli.failures import NotFound
from deepinfer.cli.foresight import dry_run_lines
from deepinfer.cli.names import deployment_name
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
    max_surge: spec.MaxSurge = None,
    max_unavailable: spec.MaxUnavailable = None,
    rollout_deadline: spec.RolloutDeadline = None,
    dry_run: DryRun = False,
    wait: Wait = True,
    timeout: Timeout = 900,
    output: Format = Output.TABLE,
    server: Address = DEFAULT_SERVER,
) -> None:
    """Run a model: create a deployment and wait until it is ready."""
    fields = spec.fields_of(context.params)  # the spec's options, by their names above
    with connect(server) as api:
        view = api.create(fields, dry_run=dry_run)
        if dry_run:
            _report_dry_runs([view], output)
        else:
            _report(_waited(api, view, timeout) if wait else view, output)


def apply(
    file: Annotated[str, typer.Option("--file", "-f", help="YAML or TOML; - reads YAML from stdin.")],
    *,
    dry_run: DryRun = False,
    wait: Wait = False,
    timeout: Timeout = 900,
    output: Format = Output.TABLE,
    server: Address = DEFAULT_SERVER,
) -> None:
    """Make deployments be as a file says: create what is missing, change what differs."""
    from deepinfer.cli.documents import read_deployments

    documents = read_deployments(file)
    with connect(server) as api:
        if dry_run:
            _report_dry_runs([_put(api, document, dry_run=True) for document in documents], output, is_list=True)
            return
        views = [_applied(api, document, quiet=output is Output.JSON) for document in documents]
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


def _applied(api: Server, document: View, *, quiet: bool) -> View:
    name = _name(document)
    try:
        before = api.deployment(name)["generation"]
    except NotFound:
        before = None
    view = _put(api, document)
    if not quiet:
        typer.echo(f"{name} {_change(before, view['generation'])}")
    return view


def _put(api: Server, document: View, *, dry_run: bool = False) -> View:
    fields = {field: value for field, value in document.items() if field != "name"}
    return api.put(_name(document), fields, dry_run=dry_run)


def _name(document: View) -> str:
    return document.get("name") or deployment_name(document["model"])


def _change(before: int | None, after: int) -> str:
    if before is None:
        return "created"
    return "unchanged" if before == after else f"changed (generation {after})"


def _waited(api: Server, view: View, timeout: float) -> View:
    from deepinfer.cli.waiting import wait_until_ready

    return wait_until_ready(api, view["name"], timeout)


def _report(view: View, output: Output) -> None:
    if output is Output.JSON:
        print_json(view)
    else:
        typer.echo(progress_of(view).sentence)


def _report_dry_runs(views: list[View], output: Output, *, is_list: bool = False) -> None:
    """Each as if it were the only one."""
    if output is Output.JSON:
        print_json(views if is_list else views[0])
    else:
        typer.echo("\n".join(line for view in views for line in dry_run_lines(view)))
