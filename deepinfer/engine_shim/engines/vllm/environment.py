"""What vLLM reads from its environment: what it must find there before it is imported, and when it has read it all."""

from __future__ import annotations

import os
from contextlib import suppress
from importlib import import_module
from typing import Final

_DEFAULTS: Final = {  # the user's own values win
    "HF_HUB_OFFLINE": "1",  # the model is a folder: nothing is to be looked up on a hub while loading
    "VLLM_NO_USAGE_STATS": "1",  # an engine tells nobody that it runs
    "VLLM_HOST_IP": "127.0.0.1",  # its processes talk to each other on this machine only, without authentication
    # Forking this process, whose gRPC threads hold locks, would hang the child.
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
}


def prepare() -> None:
    for name, value in _DEFAULTS.items():
        os.environ.setdefault(name, value)


def settle() -> None:
    """It does not change any more. vLLM looks into it for every token until it is told so, as its core tells itself."""
    with suppress(AttributeError):  # before 0.12
        import_module("vllm.envs").enable_envs_cache()
