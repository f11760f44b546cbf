"""The real vLLM for the CPU, installed where the user's engines are: made once, then used by every run of the tests."""

from __future__ import annotations

import subprocess
import sys

from deepinfer.engine_environments.environment import Environment, environments
from deepinfer.fleet.places import engines_dir
from deepinfer.fleet.spec import EngineKind


def vllm_environment() -> Environment:
    """Installed by the command itself (minutes the first time, nothing to do afterwards)."""
    subprocess.run([sys.executable, "-m", "deepinfer.cli", "engine", "install", "vllm", "--cpu"], check=True)
    found = [e for e in environments(engines_dir()) if e.record.engine.kind is EngineKind.VLLM]
    return next(e for e in found if e.record.engine.accelerator == "cpu")
