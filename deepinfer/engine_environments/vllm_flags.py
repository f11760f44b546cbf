"""Writes vLLM's own flags down: `python -m deepinfer.engine_environments.vllm_flags FILE`, run in vLLM's environment.

It imports vLLM and the standard library only. Where the parser is made has moved between versions.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from pathlib import Path
from typing import Any

_MAKERS = ("vllm.entrypoints.launchers.cli_args", "vllm.entrypoints.openai.cli_args")
_PARSERS = ("vllm.utils.argparse_utils", "vllm.utils")


def main() -> None:
    vllm = importlib.import_module("vllm")
    make = _first(_MAKERS, "make_arg_parser")
    parser = make(_first(_PARSERS, "FlexibleArgumentParser")())
    flags = [_flag(action) for action in parser._actions if action.option_strings and action.dest != "help"]
    Path(sys.argv[1]).write_text(json.dumps({"engine": "vllm", "version": vllm.__version__, "flags": flags}))


def _first(modules: tuple[str, ...], name: str) -> Any:
    for module in modules:
        try:
            return getattr(importlib.import_module(module), name)
        except (ModuleNotFoundError, AttributeError) as error:
            missing = error
    raise SystemExit(f"This vLLM has no {name} in {' or '.join(modules)}: {missing}")


def _flag(action: argparse.Action) -> dict[str, Any]:
    return {
        "options": list(action.option_strings),
        "takes_value": action.nargs != 0,
        "many": action.nargs in ("*", "+") or isinstance(action, argparse._AppendAction),
        "choices": None if action.choices is None else [str(choice) for choice in action.choices],
    }


if __name__ == "__main__":
    main()
