"""What `deepinfer apply -f` reads: deployments in YAML (documents or a list) or TOML ([[deployment]] tables).

Only the shape is checked here; the server knows what a spec may say.
"""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path
from typing import Any

import yaml

from deepinfer.cli.failures import InvalidInput
from deepinfer.cli.views import View


def read_deployments(file: str) -> list[View]:
    """Every deployment in the file, `-` being stdin; each has at least a model."""
    text, source = _text(file)
    found = _from_toml(text, source) if file.endswith(".toml") else _from_yaml(text, source)
    if not found:
        raise InvalidInput(f"{source} holds no deployment; write at least `model: NAME`.")
    for number, document in enumerate(found, start=1):
        _check(document, f"{source}, deployment {number}")
    return found


def _text(file: str) -> tuple[str, str]:
    try:
        return (sys.stdin.read(), "stdin") if file == "-" else (Path(file).read_text(), file)
    except OSError as error:
        raise InvalidInput(f"{file} cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise InvalidInput(f"{file} is not a text file in UTF-8.") from error


def _from_toml(text: str, source: str) -> list[Any]:
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InvalidInput(f"{source} is not valid TOML: {error}.") from error
    if unknown := [key for key in document if key != "deployment"]:
        raise InvalidInput(f"{source}: unknown table {unknown[0]!r}; write each deployment as [[deployment]].")
    found = document.get("deployment", [])
    return found if isinstance(found, list) else [found]


def _from_yaml(text: str, source: str) -> list[Any]:
    """TOML on stdin is not guessed at: YAML has JSON in it, and one format for a pipe is enough."""
    try:
        documents = list(yaml.safe_load_all(text))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" in line {mark.line + 1}" if mark else ""
        raise InvalidInput(f"{source} is not valid YAML{where}: {getattr(error, 'problem', None) or error}.") from error
    found: list[Any] = []
    for document in documents:
        found += document if isinstance(document, list) else [] if document is None else [document]
    return found


def _check(document: Any, place: str) -> None:
    if not isinstance(document, dict) or not all(isinstance(key, str) for key in document):
        raise InvalidInput(f"{place} must be a mapping such as `model: smollm2`.")
    if not isinstance(document.get("model"), str):
        raise InvalidInput(f"{place}: `model` is missing or not a string.")
    if not isinstance(document.get("name", ""), str):
        raise InvalidInput(f"{place}: `name` must be a string; put it in quotes.")
