"""vLLM's own OpenAI server as a process: what deepinfer's vLLM is compared with."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx
import psutil

from deepinfer.fleet.die_with_parent import dying_with_me
from tests.fleet import free_port

ON_CPU = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_NO_USAGE_STATS": "1"}
"""The environment both sides get."""


class BareVllm:
    """Started at once, ready later; `stop` leaves no process. It does not outlive the process that started it."""

    def __init__(self, python: Path, log: Path, flags: Mapping[str, Any], env: Mapping[str, str]) -> None:
        """`python` is that of vLLM's environment; `flags` are named as in deployments: {"enforce_eager": True}."""
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._log = log
        command = [str(python), "-m", "vllm.entrypoints.openai.api_server"]
        for name, value in {
            "enable_prompt_tokens_details": True,
            **flags,
            "host": "127.0.0.1",
            "port": self.port,
        }.items():
            command += _flag(name, value)
        with log.open("wb") as out:
            self._process = subprocess.Popen(
                dying_with_me(command),
                env={**os.environ, **env, "HF_HUB_OFFLINE": "1"},
                stdout=out,
                stderr=out,
                start_new_session=True,  # Ctrl-C is for who started it, and stops it in order
            )
        self.pid = self._process.pid

    def is_ready(self) -> bool:
        """Fails when it ended."""
        assert self._process.poll() is None, f"vLLM ended while it started:\n{self._log.read_text()[-3000:]}"
        try:
            return httpx.get(f"{self.url}/health").status_code == 200
        except httpx.TransportError:
            return False

    def stop(self) -> None:
        children = self._children()
        self._process.terminate()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        for child in psutil.wait_procs(children, timeout=5)[1]:
            child.kill()  # vLLM leaves its EngineCore behind when its API server dies

    def _children(self) -> list[psutil.Process]:
        try:
            return psutil.Process(self.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return []


def _flag(name: str, value: Any) -> list[str]:
    flag = f"--{name.replace('_', '-')}"
    if isinstance(value, list):
        return [flag, *map(str, value)]
    return [flag] if value is True else [flag, str(value)]
