"""What Docker says of a container, of its end, of a refusal and of a pull, and what we make of it."""

from __future__ import annotations

import signal
from typing import Any

import pytest
from docker.errors import APIError

from deepinfer.agent.containers.failures import ContainerRefused, DiskFull, ImageUnusable
from deepinfer.agent.containers.image import Layers
from deepinfer.agent.containers.seen import exit_of, removed, seen_container
from deepinfer.agent.containers.start_failure import start_failure
from deepinfer.agent.launching import Exit, Mark

MARK = Mark("chat-aaaaa-0", 3, "0123456789abcdef")


def inspected(**state: Any) -> dict[str, Any]:
    return {
        "Id": "c" * 64,
        "Created": "2026-01-02T03:04:05.123456789Z",
        "Config": {
            "Labels": {
                "deepinfer.placement": "chat-aaaaa-0",
                "deepinfer.epoch": "3",
                "deepinfer.instance": MARK.instance,
            },
            "Env": ["PATH=/bin", "VLLM_API_KEY=a=b", "VLLM_API_KEY_2=c"],
        },
        "State": {"Running": True, "Pid": 77, "ExitCode": 0, "OOMKilled": False, **state},
        "HostConfig": {"Memory": 64 << 20},
        "NetworkSettings": {"Ports": {"8000/tcp": [{"HostIp": "127.0.0.1", "HostPort": "32768"}]}},
    }


def test_a_container_as_docker_shows_it() -> None:
    seen = seen_container(inspected())
    assert seen is not None
    assert (seen.mark, seen.is_running, seen.pid, seen.created) == (MARK, True, 77, 1767323045.0)
    assert (seen.api_key, seen.endpoint, seen.kv_events, seen.memory_limit) == ("a=b", "127.0.0.1:32768", "", 64 << 20)
    on_host = inspected()
    on_host["Config"]["Labels"]["deepinfer.port"] = "8123"
    assert (found := seen_container(on_host)) is not None and found.endpoint == "127.0.0.1:8123"
    gone = inspected(Running=False, Pid=0) | {"NetworkSettings": {"Ports": {}}}
    assert (found := seen_container(gone)) is not None and (found.endpoint, found.is_running) == ("", False)
    assert seen_container(inspected() | {"Config": {"Labels": None}}) is None


OOM = "OOMKilled: the kernel killed it for its memory; its limit is 64 MiB, raise docker.memory"
RESTART = "RuntimeRestart: Docker was stopped, and without live-restore it ends its containers"


@pytest.mark.parametrize(
    ("state", "runtime_ended", "expected"),
    [
        ({"ExitCode": 0}, False, Exit(0)),
        ({"ExitCode": 1}, False, Exit(1)),
        ({"ExitCode": 137}, False, Exit(-signal.SIGKILL)),
        ({"ExitCode": 143}, False, Exit(-signal.SIGTERM)),
        ({"ExitCode": 139}, False, Exit(-signal.SIGSEGV)),
        ({"ExitCode": 127}, False, Exit(127)),
        ({"ExitCode": 128}, False, Exit(128)),
        ({"ExitCode": 255}, False, Exit(255)),
        ({"ExitCode": 137, "OOMKilled": True}, False, Exit(-signal.SIGKILL, OOM, is_sure=True)),
        ({"ExitCode": 1, "OOMKilled": True}, True, Exit(1, OOM, is_sure=True)),
        ({"ExitCode": 143}, True, Exit(-signal.SIGTERM, RESTART, is_sure=True)),
    ],
)
def test_how_it_ended(state: dict[str, Any], runtime_ended: bool, expected: Exit) -> None:
    seen = seen_container(inspected(Running=False, **state))
    assert seen is not None
    assert exit_of(seen, runtime_ended=runtime_ended) == expected


def test_an_end_for_memory_without_a_limit_names_none() -> None:
    seen = seen_container(inspected(Running=False, ExitCode=137, OOMKilled=True) | {"HostConfig": {}})
    assert seen is not None
    assert exit_of(seen, runtime_ended=False).reason == "OOMKilled: the kernel killed it for its memory"
    assert removed().status is None and removed().is_sure


RUNC = "failed to create shim task: OCI runtime create failed: runc create failed: unable to start container process"


@pytest.mark.parametrize(
    ("words", "kind", "told"),
    [
        ("write /data/x: no space left on device", DiskFull, "`docker system prune` or a larger disk makes room"),
        (
            f'{RUNC}: exec: "vllm": executable file not found in $PATH: unknown',
            ImageUnusable,
            "the image has no vLLM server to start: ",
        ),
        (f'{RUNC}: exec: "/x/vllm": stat /x/vllm: no such file or directory: unknown', ImageUnusable, "use an image"),
        (f'{RUNC}: exec: "/etc/passwd": permission denied: unknown', ImageUnusable, "or set docker.entrypoint"),
        (
            'could not select device driver "nvidia" with capabilities: [[gpu]]',
            ContainerRefused,
            "install the NVIDIA Container Toolkit",
        ),
        ("Unknown runtime specified enflame", ContainerRefused, "install the vendor's container runtime"),
        ("unknown or invalid runtime name: enflame", ContainerRefused, "install the vendor's container runtime"),
        (
            "error mounting /a to rootfs at /b: not a directory: no such file or directory: unknown",
            ContainerRefused,
            "Docker does not run the container: error mounting",
        ),
        ("invalid mount config for type: bind source path does not exist: /a", ContainerRefused, "does not exist: /a."),
        ("Conflict. The name is already in use.", ContainerRefused, "is already in use."),
    ],
)
def test_what_docker_says_when_it_does_not_start_one(words: str, kind: type[Exception], told: str) -> None:
    failed = start_failure(APIError("500 Server Error", explanation=words))
    assert type(failed) is kind
    assert told in str(failed)
    assert str(failed).startswith(f"{kind.__name__}: ") and str(failed).endswith(".") and ".." not in str(failed)


def test_what_the_docker_package_itself_refuses_is_told_too() -> None:
    assert str(start_failure(ValueError("bad\n  value"))) == (
        "ContainerRefused: Docker does not run the container: bad value."
    )


def test_how_far_a_pull_is() -> None:
    layers, told = Layers(), []
    words: list[dict[str, Any]] = [
        {"status": "Pulling from library/x", "id": "1"},
        {"status": "Pulling fs layer", "id": "a", "progressDetail": {}},
        {"status": "Pulling fs layer", "id": "b"},
        {"status": "Downloading", "id": "a", "progressDetail": {"current": 1_000_000, "total": 4_000_000}},
        {"status": "Downloading", "id": "a", "progressDetail": {"current": 1_000_001, "total": 4_000_000}},
        {"status": "Downloading", "id": "b", "progressDetail": {"current": 500_000_000, "total": 2_000_000_000}},
        {"status": "Verifying Checksum", "id": "a"},
        {"status": "Pull complete", "id": "a"},
        {"status": "Extracting", "id": "b", "progressDetail": {"current": 1, "total": 2_000_000_000}},
        {"status": "Already exists", "id": "b"},
        {"status": "Digest: sha256:1"},
    ]
    for word in words:
        if layers.learn(word):
            told.append(str(layers))
    assert told == [
        "0 MB of 0 MB, 0 of 1 layers",
        "0 MB of 0 MB, 0 of 2 layers",
        "1 MB of 4 MB, 0 of 2 layers",
        "501 MB of 2.0 GB, 0 of 2 layers",
        "504 MB of 2.0 GB, 1 of 2 layers",
        "2.0 GB of 2.0 GB, 2 of 2 layers",
    ]
