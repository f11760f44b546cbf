"""The commands that change what should run: deploy, apply, delete.

Options left out are not sent: the defaults are the server's.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deepinfer.cli.failures import InvalidInput, NotFound
from deepinfer.cli.names import deployment_name
from deepinfer.cli.options import DEFAULT_SERVER, Address, Format, Output, Timeout, Wait, connect, print_json
from deepinfer.cli.views import View, progress_of, replicas_of

if TYPE_CHECKING:
    from deepinfer.cli.server import Server

Pairs = list[str] | None


def deploy(
    model: Annotated[str, typer.Argument(help="A known name such as smollm2, or a Hugging Face id.")],
    *,
    name: Annotated[str | None, typer.Option(help="The deployment's name.  [default: from the model]")] = None,
    engine: Annotated[str | None, typer.Option(help="What computes: vllm, layer-shard or sim.")] = None,
    engine_version: Annotated[
        str | None, typer.Option(metavar="X.Y.Z", help="One that is installed.  [default: the newest that fits]")
    ] = None,
    backend: Annotated[str | None, typer.Option(help="How it runs: native or docker.")] = None,
    docker_image: Annotated[str | None, typer.Option(metavar="IMAGE", help="For backend docker.")] = None,
    docker: Annotated[Pairs, typer.Option(metavar="K=V", help="How its container is made, such as memory=16g.")] = None,
    model_path: Annotated[str | None, typer.Option(metavar="DIR", help="The model's folder on the node.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda:0, or several: 0,1.")] = None,
    tensor_parallel_size: Annotated[int | None, typer.Option(help="Devices that share one replica.")] = None,
    gpu_memory_utilization: Annotated[float | None, typer.Option(help="Share of the memory, above 0 to 1.")] = None,
    replicas: Annotated[int | None, typer.Option(help="How many copies.")] = None,
    dtype: Annotated[str | None, typer.Option(help="auto, float32, float16 or bfloat16.")] = None,
    quantization: Annotated[str | None, typer.Option(metavar="METHOD", help="Of vLLM, such as fp8 or awq.")] = None,
    max_model_len: Annotated[int | None, typer.Option(metavar="TOKENS", help="Longest prompt plus answer.")] = None,
    engine_arg: Annotated[Pairs, typer.Option(metavar="K=V", help="An engine's own option; V is JSON or text.")] = None,
    env: Annotated[Pairs, typer.Option(metavar="K=V", help="An environment variable of the engine.")] = None,
    wait: Wait = True,
    timeout: Timeout = 900,
    output: Format = Output.TABLE,
    server: Address = DEFAULT_SERVER,
) -> None:
    """Run a model: create a deployment and wait until it is ready."""
    given = {
        "model": model,
        "name": name,
        "engine": engine,
        "engine_version": engine_version,
        "backend": backend,
        "docker_image": docker_image,
        "docker": {key: _value(text) for key, text in pairs(docker, "--docker")} or None,
        "model_path": model_path,
        "device": device,
        "tensor_parallel_size": tensor_parallel_size,
        "gpu_memory_utilization": gpu_memory_utilization,
        "replicas": replicas,
        "dtype": dtype,
        "quantization": quantization,
        "max_model_len": max_model_len,
        "engine_args": engine_args(engine_arg) or None,
        "env": dict(pairs(env, "--env")) or None,
    }
    with connect(server) as api:
        view = api.create({field: value for field, value in given.items() if value is not None})
        _report(_waited(api, view, timeout) if wait else view, output)


def apply(
    file: Annotated[str, typer.Option("--file", "-f", help="YAML or TOML; - reads YAML from stdin.")],
    *,
    wait: Wait = False,
    timeout: Timeout = 900,
    output: Format = Output.TABLE,
    server: Address = DEFAULT_SERVER,
) -> None:
    """Make deployments be as a file says: create what is missing, change what differs."""
    from deepinfer.cli.documents import read_deployments

    documents = read_deployments(file)
    with connect(server) as api:
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


def engine_args(given: Pairs) -> dict[str, Any]:
    """Each value as JSON where it is JSON, else as the text it is: `--engine-arg mode=fast` needs no quotes."""
    return {key: _value(text) for key, text in pairs(given, "--engine-arg")}


def pairs(given: Pairs, option: str) -> list[tuple[str, str]]:
    split = [pair.partition("=") for pair in given or []]
    for key, equals, _ in split:
        if not key or not equals:
            raise InvalidInput(f"{option} wants K=V, not {key!r}.")
    return [(key, value) for key, _, value in split]


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _applied(api: Server, document: View, *, quiet: bool) -> View:
    name = document.get("name") or deployment_name(document["model"])
    try:
        before = api.deployment(name)["generation"]
    except NotFound:
        before = None
    view = api.put(name, {field: value for field, value in document.items() if field != "name"})
    if not quiet:
        typer.echo(f"{name} {_change(before, view['generation'])}")
    return view


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
