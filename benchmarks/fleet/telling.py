"""News of a process that holds nodes, to the one that measures: a JSON object a line on stdout."""

from __future__ import annotations

import json
import sys
import time


def tell(**news: str | int) -> None:
    """Stamped with the machine's monotonic clock, which all its processes share."""
    sys.stdout.write(json.dumps(news | {"at": time.monotonic()}) + "\n")
    sys.stdout.flush()
