"""The platform as containers: compose.yaml is valid in every profile, its images build, and what it starts serves."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from deepinfer.agent.native.engine_process import engine_processes
from tests.compose_project import ComposeProject
from tests.docker_engine import DockerEngine
from tests.docker_images import sim_image
from tests.empty_model import put_empty_model
from tests.fleet import eventually

BUILDING_SECONDS = 900  # a minute, with packages from an index


@pytest.fixture
def running(docker_engine: DockerEngine, tmp_path: Path) -> Iterator[ComposeProject]:
    """The cpu profile, healthy."""
    project = ComposeProject(docker_engine, tmp_path, "cpu")
    project.build()
    try:
        project.run("up", "-d")
        eventually(lambda: project.unhealthy() == set(), 60)
        yield project
    finally:
        project.run("down", "-v")


@pytest.mark.parametrize("profile", ["nvidia", "rocm", "cpu"])
def test_a_profile_has_one_worker_and_nobody_else_gets_the_docker_socket(
    docker_engine: DockerEngine, tmp_path: Path, profile: str
) -> None:
    services = ComposeProject(docker_engine, tmp_path, profile).services()
    assert set(services) == {"etcd", "serve", f"worker-{profile}"}
    with_socket = [name for name, service in services.items() if "docker.sock" in str(service.get("volumes"))]
    assert with_socket == [f"worker-{profile}"]
    assert all(service["healthcheck"] and service["network_mode"] == "host" for service in services.values())


@pytest.mark.timeout(BUILDING_SECONDS)
def test_it_serves_a_model_survives_a_killed_worker_and_leaves_nothing(
    running: ComposeProject, docker_engine: DockerEngine
) -> None:
    running.run("exec", "-T", "serve", "deepinfer", "deploy", "echo", "--engine", "sim", "--device", "cpu")
    assert running.chats("echo")

    worker = running.process("worker-cpu")
    worker.kill()
    eventually(lambda: not worker.is_running())
    eventually(lambda: running.chats("echo"), 60)

    running.run("down", "-v")
    instance = (running.home / "data/deepinfer/nodes/node-1/instance").read_text().strip()
    assert not engine_processes(instance)
    assert not docker_engine.ps()
    assert not docker_engine.docker.volumes.list()


@pytest.mark.timeout(BUILDING_SECONDS)
def test_its_worker_runs_models_in_containers_and_takes_them_with_it(
    running: ComposeProject, docker_engine: DockerEngine
) -> None:
    body = {
        "model": "boxed",
        "model_path": str(put_empty_model(running.home / "models/empty")),
        "backend": "docker",
        "docker_image": sim_image(docker_engine),
        "device": "cpu",
    }

    def deploy() -> None:
        httpx.post(f"{running.url}/v1/deployments", json=body).raise_for_status()
        eventually(lambda: running.chats("boxed"), 60)

    deploy()
    assert len(running.engine_containers()) == 1
    httpx.delete(f"{running.url}/v1/deployments/boxed").raise_for_status()
    eventually(lambda: not running.engine_containers())
    eventually(lambda: not httpx.get(f"{running.url}/v1/replicas").json()["data"])
    deploy()
    running.run("stop", "worker-cpu")
    assert running.engine_containers() == []


@pytest.mark.timeout(BUILDING_SECONDS)
def test_a_process_that_hangs_is_unhealthy_until_it_goes_on(running: ComposeProject) -> None:
    worker, serve, etcd = (running.process(service) for service in ("worker-cpu", "serve", "etcd"))
    worker.suspend()
    eventually(lambda: running.unhealthy() == {"worker-cpu"}, 60)
    worker.resume()
    eventually(lambda: not running.unhealthy(), 60)
    serve.suspend()
    etcd.suspend()
    eventually(lambda: running.unhealthy() == {"worker-cpu", "serve", "etcd"}, 90)
    serve.resume()
    etcd.resume()
    eventually(lambda: not running.unhealthy(), 60)
