"""A whole fleet on this machine, from the first process to the last: what `up` does.

It starts `serve` and `worker` as children, says what it wants by the same API as everybody else, and stays to watch.
What was made once (etcd's data, model files) is found again: a second `up` only starts processes.
"""

from __future__ import annotations

import asyncio
import json
import socket
import sys
import time
from contextlib import suppress
from pathlib import Path

from deepinfer.cli.failures import CommandError, InvalidInput, OperationFailed, ServerNotReachable
from deepinfer.cli.processes import AGENT, CONTROL_PLANE
from deepinfer.cli.server import Server
from deepinfer.cli.supervision import Child, Children, StopAsked
from deepinfer.cli.up_plan import Plan, welcome
from deepinfer.cli.views import Outcome, Progress
from deepinfer.cli.waiting import Display, Settling, display, look
from deepinfer.fleet.places import data_dir

NODE = "local"  # not the hostname: laptops change theirs, and what was placed before must be found again
_LOOK_EVERY_SECONDS = 0.1
_SERVER_SECONDS = 5.0  # for one answer of our own server; nothing else happens here meanwhile, see `supervision`


async def run(plan: Plan) -> None:
    """Returns when everything was asked to end and has ended; raises if it could not start or something died."""
    if not plan.deployment:
        raise InvalidInput(f"{plan.model!r} is not a model's name; try smollm2.")
    _require_free(plan)
    with Server(plan.url, timeout=_SERVER_SECONDS) as server:
        try:
            async with Children(_logs(), _say) as children:
                await _bring_up(plan, children, server)
                await children.unless_one_dies(asyncio.Event().wait())
        except StopAsked:
            _say("everything has ended")


async def _bring_up(plan: Plan, children: Children, server: Server) -> None:
    began = time.monotonic()
    config = ["-c", plan.config or str(_own_config())]
    with display() as shown:
        children.start("control plane", CONTROL_PLANE, *config, "--host", plan.host, "--port", str(plan.port))
        await children.unless_one_dies(_ready(server, shown))
        worker = children.start("worker", AGENT, *config, "-n", NODE)
        await children.unless_one_dies(_worker_ready(worker, shown))
        await children.unless_one_dies(_deployed(plan, server, shown))
    print(welcome(plan, time.monotonic() - began), flush=True)


def _own_config() -> Path:
    """An etcd of its own, so that trying things here leaves no trace in the fleet of `serve` and `worker`."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    path = _logs() / "deepinfer.toml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"[etcd]\nport = {port}\ndata_dir = {json.dumps(str(_logs() / 'etcd'))}\n")
    return path


async def _ready(server: Server, shown: Display) -> None:
    while not server.is_ready():
        shown.show("starting the control plane")
        await asyncio.sleep(_LOOK_EVERY_SECONDS)


async def _worker_ready(worker: Child, shown: Display) -> None:
    """By its own word: the node's key may still be there from an earlier run."""
    while not worker.has_said(f"deepinfer worker {NODE}: ready"):
        shown.show("starting the worker")
        await asyncio.sleep(_LOOK_EVERY_SECONDS)


async def _deployed(plan: Plan, server: Server, shown: Display) -> None:
    settling, asked = Settling(), False
    while True:
        try:
            if not asked:
                server.put(plan.deployment, plan.spec)
            asked, progress = True, look(server, plan.deployment).progress
        except ServerNotReachable:  # a busy machine; if it is worse, its process ends and that is told
            progress = Progress(Outcome.PENDING, "waiting for the control plane")
        if settling.final(progress, time.monotonic()):
            break
        shown.show(progress.sentence)
        await asyncio.sleep(_LOOK_EVERY_SECONDS)
    if progress.outcome is not Outcome.READY:
        raise OperationFailed(f"{progress.sentence.rstrip('.')}. Everything is ended; logs are in {_logs()}.")


def _require_free(plan: Plan) -> None:
    """Say it before anything is started."""
    family = socket.AF_INET6 if ":" in plan.host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((plan.host, plan.port))
        except OSError as error:
            raise OperationFailed(_taken(plan, error)) from error


def _taken(plan: Plan, error: OSError) -> str:
    try:
        with Server(plan.url) as server:
            server.nodes()
    except CommandError:
        return f"Port {plan.port} of {plan.host} cannot be used ({error.strerror}); choose another with --port."
    return (
        f"A deepinfer already answers at {plan.url}; run the model there with "
        f"`deepinfer deploy {plan.model} --server {plan.url}`, or stop that one first."
    )


def _logs() -> Path:
    return data_dir() / "up"


def _say(sentence: str) -> None:
    with suppress(OSError):  # a closed terminal must not keep anything from ending
        print(sentence, file=sys.stderr, flush=True)
