"""Where the benchmarks install their peers, once for all of them."""

from __future__ import annotations

import os
from pathlib import Path


def peers_folder() -> Path:
    """Of this user."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "deepinfer-bench"
