"""What `python -m deepinfer.agent` is told: its arguments, over the values of the configuration file."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from deepinfer.fleet.config import Config, InvalidConfig, at_endpoints, load_config
from deepinfer.fleet.resource import LabelKey, LabelValue, Name
from deepinfer.fleet.store_access import access_of


def told(arguments: Sequence[str] | None) -> tuple[str, Config]:
    """The node's name, and everything else. Raises `InvalidConfig`."""
    given = _parser().parse_args(arguments)
    return _checked_name(given.name), _config(given)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m deepinfer.agent", description="Run engines on this machine.")
    parser.add_argument("-n", "--name", required=True, help="this node's name in the fleet")
    parser.add_argument("-c", "--config", type=Path, help="a TOML file; configs/default.toml shows every key")
    parser.add_argument("--etcd", nargs="+", metavar="HOST:PORT", help="where the fleet's store is")
    parser.add_argument("--state-dir", type=Path, help="where logs and records of this machine's nodes are kept")
    parser.add_argument("--label", action="append", default=[], metavar="KEY=VALUE", help="may be given several times")
    parser.add_argument("--max-vram-mb", help="megabytes of memory that each device offers at most")
    parser.add_argument("--drain", action="store_true", help="at SIGTERM, wait until what runs here is moved away")
    return parser


def _checked_name(name: str) -> str:
    try:
        return TypeAdapter(Name).validate_python(name)
    except ValidationError as error:
        raise InvalidConfig(
            f'"{name}" cannot be a node\'s name; use lower-case letters, digits, "-", "_" and ".", 63 at most.'
        ) from error


def _config(given: argparse.Namespace) -> Config:
    config = load_config(given.config)
    etcd = at_endpoints(config.etcd, given.etcd)
    access_of(etcd)  # a file that cannot be read ends the start
    changes: dict[str, Any] = {"labels": config.worker.labels | dict(map(_label, given.label))}
    if given.state_dir:
        changes["state_dir"] = given.state_dir
    if given.max_vram_mb is not None:
        changes["max_vram_mb"] = _megabytes(given.max_vram_mb)
    if given.drain:
        changes["drain_on_stop"] = True
    return config.model_copy(update={"etcd": etcd, "worker": config.worker.model_copy(update=changes)})


def _megabytes(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text) > 0):
        raise InvalidConfig(f'--max-vram-mb "{text}" is no number of megabytes; give a whole number above zero.')
    return int(text)


def _label(text: str) -> tuple[str, str]:
    key, separator, value = text.partition("=")
    try:
        if separator:
            return TypeAdapter(LabelKey).validate_python(key), TypeAdapter(LabelValue).validate_python(value)
    except ValidationError:
        pass  # it is told below
    raise InvalidConfig(
        f'"{text}" is no label; write KEY=VALUE with letters, digits, "-", "_" and ".", 63 at most (a key also "/").'
    )
