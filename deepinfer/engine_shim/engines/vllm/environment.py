"""What vLLM reads from its environment: what it must find there before it is imported, and when it has read it all."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Final

_DEFAULTS: Final = {  # the user's own values win
    "HF_HUB_OFFLINE": "1",  # the model is a folder: nothing is to be looked up on a hub while loading
    "VLLM_NO_USAGE_STATS": "1",  # an engine tells nobody that it runs
    "VLLM_HOST_IP": "127.0.0.1",  # its processes talk to each other on this machine only, without authentication
    # Forking this process, whose gRPC threads hold locks, would hang the child.
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
}
OPENMP: Final = Path("lib", "libiomp5.so")
"""Intel's, in vLLM's environment: its wheel for x86 CPUs brings it along and does not use it unless it is told to."""
SPIN_MILLISECONDS: Final = "5"
"""How long its threads wait in a loop for more work: what vLLM itself sets where it binds them to cores."""


def prepare(device: str) -> None:
    for name, value in _DEFAULTS.items():
        os.environ.setdefault(name, value)
    if device == "cpu":
        _prefer_openmp(sys.prefix / OPENMP)


def settle() -> None:
    """It does not change any more. vLLM looks into it for every token until it is told so, as its core tells itself."""
    with suppress(AttributeError):  # before 0.12
        import_module("vllm.envs").enable_envs_cache()


def _prefer_openmp(library: Path) -> None:
    """For the processes that compute, which are started later: a tenth to a quarter more tokens than with GNU's."""
    preloaded = os.environ.get("LD_PRELOAD", "")
    if library.exists() and "omp" not in preloaded:
        os.environ["LD_PRELOAD"] = f"{library}:{preloaded}".rstrip(":")
        os.environ.setdefault("KMP_BLOCKTIME", SPIN_MILLISECONDS)
