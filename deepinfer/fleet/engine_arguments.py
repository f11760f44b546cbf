"""How arguments of an engine are called: `max-num-seqs`, as typed after a command, and `max_num_seqs` are one. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def by_name(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Under their names with underscores."""
    return {name.replace("-", "_"): value for name, value in arguments.items()}
