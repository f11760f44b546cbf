"""Imports what a shim imports: `python -P -m deepinfer.engine_environments.shim_trial`, run in an engine's environment.

By name, for the shim is no part of this folder; every module of it that needs no engine must import there.
"""

from __future__ import annotations

import importlib


def main() -> None:
    importlib.import_module("deepinfer.engine_shim.main")


if __name__ == "__main__":
    main()
