"""A real registry on loopback, which Docker engines trust as it is. Images are pulled from it."""

from __future__ import annotations

import http.client
import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from deepinfer.fleet.die_with_parent import dying_with_me
from tests.docker_engine import DockerEngine
from tests.fleet import free_port


class DockerRegistry:
    """At `address`; what it holds lies in a folder of its caller's."""

    def __init__(self, address: str) -> None:
        self.address = address

    def push(self, engine: DockerEngine, image: str) -> str:
        """The name it can be pulled by. The engine keeps its layers, but not under this name."""
        name, _, tag = image.partition(":")
        there = f"{self.address}/{name}"
        engine.docker.images.get(image).tag(there, tag)
        for line in engine.docker.images.push(there, tag, stream=True, decode=True):
            assert "error" not in line, line
        engine.docker.images.remove(f"{there}:{tag}")
        return f"{there}:{tag}"


@contextmanager
def docker_registry(folder: Path) -> Iterator[DockerRegistry]:
    assert shutil.which("docker-registry"), (
        "These tests pull images, and there is no registry; install docker-registry."
    )
    address = f"127.0.0.1:{free_port()}"
    config = folder / "registry.yml"  # JSON is YAML
    storage = {"filesystem": {"rootdirectory": str(folder / "registry")}}
    config.write_text(json.dumps({"version": 0.1, "storage": storage, "http": {"addr": address}}))
    with (folder / "registry.log").open("ab") as log:
        command = dying_with_me(["docker-registry", "serve", str(config)], "SIGKILL")
        process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
    try:
        deadline = time.monotonic() + 30
        while not _answers(address):
            assert process.poll() is None and time.monotonic() < deadline, (folder / "registry.log").read_text()
            time.sleep(0.02)  # another process: there is no event to wait for
        yield DockerRegistry(address)
    finally:
        process.kill()
        process.wait()


def _answers(address: str) -> bool:
    connection = http.client.HTTPConnection(address, timeout=2)
    try:
        connection.request("GET", "/v2/")
        return connection.getresponse().status == http.client.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
