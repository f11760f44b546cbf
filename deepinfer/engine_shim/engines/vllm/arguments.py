"""From a launch to vLLM's own parsed arguments. Every value goes through vLLM's parser, as if it had been typed.

Which names may be given at all was checked by the agent, before this process existed.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Collection, Mapping
from typing import Any, NoReturn

from deepinfer.engine_shim.engines.vllm.imports import Vllm
from deepinfer.engine_shim.engines.vllm_command import command_line, words
from deepinfer.fleet.errors import EngineWillNotStart
from deepinfer.fleet.launch import EngineLaunch


def parsed(vllm: Vllm, launch: EngineLaunch, own: Mapping[str, Any]) -> Namespace:
    """`own` are the flags the shim sets. `EngineWillNotStart` with the parser's own sentence."""
    parser = vllm["make_arg_parser"](vllm["FlexibleArgumentParser"](prog="vllm serve"))
    parser.error = _refuse
    given = [*command_line(launch), *(word for name, value in own.items() for word in words(name, value))]
    options = {option for action in parser._actions for option in action.option_strings}
    try:
        arguments: Namespace = parser.parse_args([word for word in given if not _means_nothing(word, options)])
        vllm["validate_parsed_serve_args"](arguments)
    except (TypeError, ValueError) as error:
        _refuse(str(error))
    return arguments


def _means_nothing(word: str, options: Collection[str]) -> bool:
    """A flag that can only be switched on is off when it is left out."""
    return word not in options and word.startswith("--no-") and f"--{word[5:]}" in options


def _refuse(message: str) -> NoReturn:
    raise EngineWillNotStart(f"vLLM refuses its arguments: {message.strip()}")
