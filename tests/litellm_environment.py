"""litellm in an environment of its own, for it wants older versions of what our other clients need: made once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from deepinfer.fleet.places import cache_dir

CALLS = Path(__file__).with_name("litellm_calls.py")
_OFFLINE = {"LITELLM_LOCAL_MODEL_COST_MAP": "True"}  # or it fetches a list of prices when it is imported


def called_by_litellm(url: str, chat: str, embed: str) -> dict[str, Any]:
    """What its calls to these models gave."""
    command = [str(_python()), str(CALLS), url, chat, embed]
    done = subprocess.run(command, env={**os.environ, **_OFFLINE}, stdout=subprocess.PIPE, timeout=120, check=True)
    told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return told


def _python() -> Path:
    """Installed with pip (a minute the first time, nothing to do afterwards)."""
    folder = cache_dir() / "test-clients" / "litellm"
    python, made = folder / "bin" / "python", folder / ".installed"
    if not made.exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", "litellm"], check=True)
        made.touch()
    return python
