"""A fleet whose models run in containers of a Docker engine of the tests."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
from docker.models.containers import Container

from tests.docker_engine import DockerEngine
from tests.docker_images import sim_image
from tests.empty_model import put_empty_model
from tests.fleet import Fleet, eventually


class BoxedFleet(Fleet):
    """`boxed` deploys the simulated engine's image, if no other is named."""

    def __init__(self, home: Path, engine: DockerEngine, worker: str = "") -> None:
        super().__init__(home, worker=worker, docker=engine.host)
        self.engine = engine
        self.model = put_empty_model(home / "model")

    def boxed(self, name: str = "boxed", image: str | None = None, **body: Any) -> None:
        known = {"model": "org/model", "model_path": str(self.model), "device": "cpu", "backend": "docker"}
        self.deploy(name=name, docker_image=image or sim_image(self.engine), **{**known, **body})

    def containers(self) -> list[Container]:
        """Of its engines, also those that do not run."""
        return [container for container in self.engine.ps() if "deepinfer.placement" in container.labels]

    def sidecars(self) -> list[psutil.Process]:
        return [process for process in self.processes() if "deepinfer.engine_shim" in process.cmdline()]

    def said(self, name: str = "boxed") -> str:
        """What it answers to a short chat."""
        question: Any = [{"role": "user", "content": "Hello"}]
        answer = self.openai.chat.completions.create(model=name, messages=question, max_tokens=5)
        return answer.choices[0].message.content or ""

    def message(self, name: str = "boxed") -> str:
        """What its replicas' statuses say."""
        return "; ".join(replica["message"] for replica in self.replicas(name))

    def told(self, words: str, name: str = "boxed", seconds: float = 20) -> None:
        """Waits until a status says so."""
        deadline = time.monotonic() + seconds
        while words not in (message := self.message(name)):
            assert time.monotonic() < deadline, f"{words!r} was not told within {seconds} s, but {message!r}"
            time.sleep(0.05)  # another process is watched from outside

    def others_ready(self, before: list[dict[str, Any]], name: str = "boxed", seconds: float = 30) -> Any:
        """Its replicas, once all are ready as other processes than before."""
        old = {replica["pid"] for replica in before}

        def look() -> list[dict[str, Any]]:
            replicas = self.wait_ready(name)
            return [] if old & {replica["pid"] for replica in replicas} else replicas

        return eventually(look, seconds)


@contextmanager
def boxed_fleet(home: Path, engine: DockerEngine, worker: str = "") -> Iterator[BoxedFleet]:
    """With one node; nothing is left of it afterwards."""
    with BoxedFleet(home, engine, worker).running() as fleet:
        yield fleet
    assert fleet.containers() == []
