"""What is run in a container, for what its image has and what is wanted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from deepinfer.agent.containers.server_command import Listening, listening, server_command
from deepinfer.fleet.launch import EngineLaunch
from deepinfer.fleet.spec import EngineKind


def launch(**fields: Any) -> EngineLaunch:
    known: dict[str, Any] = {"device": "cuda", "model_path": Path("/models/m"), "tensor_parallel_size": 2}
    names = ("chat", "org/model")
    return EngineLaunch(
        placement="chat-aaaaa-0",
        epoch=3,
        engine=EngineKind.VLLM,
        served_names=names,
        socket=Path("/s"),
        **known | fields,
    )


Words = tuple[str, ...]
API_SERVER = ("python3", "-m", "vllm.entrypoints.openai.api_server")


@pytest.mark.parametrize(
    ("of_the_image", "wanted", "entrypoint", "first"),
    [
        (("vllm", "serve"), None, None, ("/models/m",)),
        (("/usr/local/bin/vllm", "serve"), None, None, ("/models/m",)),
        (("tini", "--", "vllm", "serve"), None, None, ("/models/m",)),
        (API_SERVER, None, None, ("--model=/models/m",)),
        (("/bin/bash",), None, ("vllm", "serve"), ("/models/m",)),
        (("sh", "-c"), None, ("vllm", "serve"), ("/models/m",)),
        ((), None, ("vllm", "serve"), ("/models/m",)),
        (("/opt/nvidia/nvidia_entrypoint.sh",), None, None, ("vllm", "serve", "/models/m")),
        (("tini", "--"), None, None, ("vllm", "serve", "/models/m")),
        (("vllm", "serve"), ("python", "-m", "mine"), ("python", "-m", "mine"), ("--model=/models/m",)),
        (("/bin/bash",), ("my-vllm", "serve"), ("my-vllm", "serve"), ("/models/m",)),
        (("vllm", "serve"), (), (), ("--model=/models/m",)),
    ],
)
def test_the_server_is_the_image_s_own_or_the_user_s_or_vllm_serve(
    of_the_image: Words, wanted: Words | None, entrypoint: Words | None, first: Words
) -> None:
    command = server_command(of_the_image, wanted, launch(), {})
    assert (command.entrypoint, command.words[: len(first)]) == (entrypoint, first)
    assert [word for word in command.words if "/models/m" in word] == [first[-1]]


def test_the_flags_are_the_launch_s_and_ours_come_last() -> None:
    kv = {"publisher": "zmq"}
    own = listening(Listening("127.0.0.1", 8123), kv)
    given = launch(engine_args={"max_num_seqs": 4, "enforce_eager": True}, quantization="fp8", max_model_len=512)
    assert server_command(("vllm", "serve"), None, given, own).words == (
        "/models/m",
        "--served-model-name",
        "chat",
        "org/model",
        "--dtype=auto",
        "--max-model-len=512",
        "--quantization=fp8",
        "--tensor-parallel-size=2",
        "--enable-prompt-tokens-details",
        "--gpu-memory-utilization=0.9",
        "--max-num-seqs=4",
        "--enforce-eager",
        "--host=127.0.0.1",
        "--port=8123",
        '--kv-events-config={"publisher": "zmq"}',
        "--disable-uvicorn-access-log",
    )


def test_without_kv_events_there_is_no_word_of_them() -> None:
    words = server_command((), None, launch(), listening(Listening("0.0.0.0", 8000), None)).words  # noqa: S104
    assert words[-3:] == ("--host=0.0.0.0", "--port=8000", "--disable-uvicorn-access-log")
