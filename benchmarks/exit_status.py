"""How a benchmark's process ends."""

from __future__ import annotations

import sys
from collections.abc import Callable

from deepinfer.fleet.errors import DeepinferError


def exit_status(run: Callable[[], None]) -> int:
    """0; or 1, after a line on stderr that says what went wrong."""
    try:
        run()
    except DeepinferError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0
