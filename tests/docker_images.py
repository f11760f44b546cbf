"""Images for a Docker engine of the tests, made of what is on this machine: nothing is pulled. Each is made once."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterable, Mapping
from importlib.metadata import Distribution, distribution
from pathlib import Path
from typing import Final

import docker
from packaging.requirements import Requirement

import deepinfer
from deepinfer.engine_environments.environment import Environment
from tests.docker_engine import DockerEngine
from tests.root_tar import PYTHON, RootTar, streamed

_IMPORT_SECONDS: Final = 600
_PACKAGES: Final = Path("/opt/packages")
_NEEDED: Final = (
    "httptools",
    "jinja2",
    "msgspec",
    "packaging",
    "prometheus-client",
    "protobuf",
    "pydantic",
    "pyzmq",
    "tokenizers",
    "uvicorn",
    "uvloop",
)
"""What the simulated engine's server imports."""
_NOT_NEEDED: Final = {"huggingface-hub"}  # tokenizers' own need, for downloads by name

_VLLM_PROGRAM: Final = f"""#!{PYTHON}
import sys

from deepinfer.engine_shim.engines.sim_server.__main__ import main

sys.exit(main())
"""
_WEB: Final = """
import argparse, http.server
parser = argparse.ArgumentParser()
parser.add_argument("--host", default="0.0.0.0")
parser.add_argument("--port", type=int, default=8000)
given, _ = parser.parse_known_args()
http.server.ThreadingHTTPServer((given.host, given.port), http.server.SimpleHTTPRequestHandler).serve_forever()
"""
_EXITS: Final = "import sys; print('RuntimeError: no device of this kind is supported', file=sys.stderr); sys.exit(3)"


def sim_image(engine: DockerEngine) -> str:
    """The simulated engine where vllm/vllm-openai has vLLM. Its entry point is `vllm serve`."""

    def fill(root: RootTar) -> None:
        root.add_python()
        for package in _with_needs(_NEEDED):
            root.add_distribution(package, _PACKAGES)
        root.add_tree(Path(deepinfer.__file__).parent, at=_PACKAGES / "deepinfer")
        root.add_text(Path("/usr/local/bin/vllm"), _VLLM_PROGRAM)

    return _imported(engine, "sim-vllm:1", fill, {"ENV": f"PYTHONPATH={_PACKAGES}", "ENTRYPOINT": '["vllm","serve"]'})


def exits_image(engine: DockerEngine) -> str:
    """Says that it does not work here, and ends with 3."""
    return _on_top(engine, "exits:1", ENTRYPOINT=[str(PYTHON), "-c", _EXITS])


def no_server_image(engine: DockerEngine) -> str:
    """No entry point, and no vllm on its PATH: as any image that is not vLLM's."""
    return _on_top(engine, "no-server:1", ENTRYPOINT=[], CMD=[str(PYTHON)], ENV="PATH=/nowhere")


def web_image(engine: DockerEngine) -> str:
    """An HTTP server at --port that knows nothing of OpenAI's API: 404."""
    return _on_top(engine, "web:1", ENTRYPOINT=[str(PYTHON), "-c", _WEB])


def vllm_image(engine: DockerEngine, environment: Environment) -> str:
    """The real vLLM for the CPU (gigabytes, a minute). Its entry point is a module, as of older vllm/vllm-openai.

    There is no compiler in it: start it with --enforce-eager.
    """

    def fill(root: RootTar) -> None:
        root.add_python()
        root.add_tree(environment.folder)
        root.add(Path("/usr/bin/lscpu"))  # its workers ask it which cores to use

    entry = [str(environment.interpreter), "-m", "vllm.entrypoints.openai.api_server"]
    # vLLM's own images have a compiler for what it compiles as it runs; this one has none.
    return _imported(engine, "vllm-cpu:1", fill, {"ENV": "TORCHDYNAMO_DISABLE=1", "ENTRYPOINT": json.dumps(entry)})


def _imported(engine: DockerEngine, tag: str, fill: Callable[[RootTar], None], settings: Mapping[str, str]) -> str:
    if not engine.docker.images.list(tag):
        client = docker.APIClient(engine.host, timeout=_IMPORT_SECONDS)
        changes = [f"{name} {value}" for name, value in settings.items()]
        answer = client.import_image(src=streamed(fill), repository=tag, changes=changes)
        client.close()
        assert engine.docker.images.list(tag), answer
    return tag


def _on_top(engine: DockerEngine, tag: str, **settings: list[str] | str) -> str:
    """The simulated engine's image with another entry point."""
    lines = [f"FROM {sim_image(engine)}", "STOPSIGNAL SIGINT"]  # a Python that is process 1 heeds no SIGTERM
    lines += [f"{name} {value if isinstance(value, str) else json.dumps(value)}" for name, value in settings.items()]
    engine.docker.images.build(fileobj=io.BytesIO("\n".join(lines).encode()), tag=tag, rm=True)
    return tag


def _with_needs(names: Iterable[str]) -> list[Distribution]:
    """The packages, and those they need."""
    found: dict[str, Distribution] = {}
    left = list(names)
    while left:
        name = left.pop()
        if name in found or name in _NOT_NEEDED:
            continue
        found[name] = distribution(name)
        needs = map(Requirement, found[name].requires or ())
        left += [need.name for need in needs if need.marker is None or need.marker.evaluate({"extra": ""})]
    return list(found.values())
