"""compose.yaml as a user's own `docker compose` runs it, on a Docker engine and on ports of the tests' own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any, Final

import httpx
import psutil
import yaml
from docker.models.containers import Container

from tests.docker_engine import DockerEngine
from tests.fleet import free_port
from tests.python_image import python_image

FILE: Final = Path(__file__).parent.parent / "compose.yaml"


def compose_program() -> list[str]:
    """Version 2, a plug-in of docker, or version 1, a program of its own."""
    if shutil.which("docker") and subprocess.run(["docker", "compose", "version"], capture_output=True).returncode == 0:
        return ["docker", "compose"]
    assert shutil.which("docker-compose"), (
        "These tests run compose.yaml, and no compose is here; install docker-compose."
    )
    return ["docker-compose"]


class ComposeProject:
    """Its worker's image is built without an extra: torch is gigabytes, and only that argument makes the difference."""

    def __init__(self, engine: DockerEngine, home: Path, profile: str) -> None:
        self.home = home
        self.url = f"http://127.0.0.1:{(port := free_port())}"
        self._engine = engine
        self._override = home / "builds.yaml"
        self._profile = profile
        self._variables = {
            "COMPOSE_PROJECT_NAME": f"deepinfer-{profile}",
            "DEEPINFER_ETCD_PORT": str(free_port()),
            "DEEPINFER_EXTRAS": "",
            "DEEPINFER_HEALTH_INTERVAL": "1s",
            "DEEPINFER_HOME": str(home),
            "DEEPINFER_PORT": str(port),
            "DOCKER_HOST": engine.host,
            "DOCKER_SOCKET": str(engine.socket),
            "TORCH_INDEX": "",
        }

    def build(self) -> None:
        """With this machine's network: the engine's bridge leads nowhere."""
        builds = {name: {"build": {"network": "host"}} for name in self.services()}
        self._override.write_text(json.dumps({"services": builds}))
        self._variables["PYTHON_IMAGE"] = python_image(self._engine)
        self.run("-f", str(self._override), "build")

    def services(self) -> dict[str, Any]:
        """Those of the profile; version 1 shows the others too."""
        found: dict[str, Any] = yaml.safe_load(self.run("config"))["services"]
        return {name: service for name, service in found.items() if self._profile in service["profiles"]}

    def run(self, *arguments: str) -> str:
        """What it prints on its standard output."""
        command = [*compose_program(), "-f", str(FILE), "--profile", self._profile, *arguments]
        done = subprocess.run(command, env={**os.environ, **self._variables}, capture_output=True, text=True)
        assert done.returncode == 0, f"{' '.join(command)}:\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        return done.stdout

    def container(self, service: str) -> Container:
        label = f"com.docker.compose.service={service}"
        (found,) = self._engine.docker.containers.list(all=True, filters={"label": label})
        return found

    def process(self, service: str) -> psutil.Process:
        """The one that the container is for, be it the first or Docker's init's child."""
        first = psutil.Process(self.container(service).attrs["State"]["Pid"])
        return first.children()[0] if "init" in first.name() else first

    def unhealthy(self) -> set[str]:
        """The services that are not healthy, or not yet."""
        states = {name: self.container(name).attrs["State"] for name in self.services()}
        return {name for name, state in states.items() if state["Health"]["Status"] != "healthy"}

    def engine_containers(self) -> list[Container]:
        """What the worker made, also those that do not run."""
        return self._engine.docker.containers.list(all=True, filters={"label": "deepinfer.placement"})

    def chats(self, model: str) -> bool:
        """Whether a chat with it is answered now."""
        body = {"model": model, "max_tokens": 4, "messages": [{"role": "user", "content": "hi"}]}
        return httpx.post(f"{self.url}/v1/chat/completions", json=body).is_success
