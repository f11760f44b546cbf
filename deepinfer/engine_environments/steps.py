"""The child processes of an installation: Python's venv, pip, trials. What they print becomes progress and the log.

They die with this process, even by kill -9, and hold the installation's lock as long as they live.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from deepinfer.fleet.die_with_parent import dying_with_me
from deepinfer.fleet.errand import Done, run_command
from deepinfer.fleet.errors import DeepinferError

Progress = Callable[[str], None]

_NOTHING_THERE = ("No matching distribution found", "ResolutionImpossible", "Could not find a version")
_LEADS_ELSEWHERE = {"PYTHONPATH", "PYTHONHOME", "PIP_USER", "PIP_TARGET", "PIP_PREFIX", "PIP_ROOT", "VIRTUAL_ENV"}
_BAR = re.compile(r"Progress (\d+) of (\d+)")
_PIP = ("-m", "pip", "--disable-pip-version-check", "--no-input")
_MIB = 1 << 20


class StepFailed(DeepinferError):
    """A step of the installation failed."""


@dataclass(frozen=True)
class Workbench:
    """One installation's folder, where it may be found, and what its steps share."""

    folder: Path
    environment: Mapping[str, str]  # pip's own variables and files stay in force
    log: Path
    lock: int
    progress: Progress

    @property
    def python(self) -> str:
        return str(self.folder / "bin" / "python")

    async def pip_install(self, *requirements: str, extra_index: str | None = None) -> None:
        """Raises `StepFailed` with what pip said. `extra_index` is asked only when there is nothing without it."""
        shown = " ".join(requirement.partition(";")[0] for requirement in requirements if requirement[0] != "-")
        done = await self._pip("install", *requirements, reading=_PipLines(shown, self.progress))
        if done.exit_status and extra_index and any(words in "\n".join(done.last_lines) for words in _NOTHING_THERE):
            self.progress(f"{shown}: looking at {extra_index}")
            more = ("--extra-index-url", extra_index, "--retries", "1")
            done = await self._pip("install", *more, *requirements, reading=_PipLines(shown, self.progress))
        if done.exit_status:
            raise StepFailed(_pip_said(done))

    async def pip_uninstall(self, package: str) -> None:
        done = await self._pip("uninstall", "--yes", package, reading=_PipLines(package, self.progress))
        if done.exit_status:
            raise StepFailed(_pip_said(done))

    async def packages(self) -> tuple[str, ...]:
        """What is installed, as name==version."""
        found: list[str] = []
        done = await self.run(self.python, *_PIP, "list", "--format=freeze", on_line=found.append)
        if done.exit_status:
            raise StepFailed(_pip_said(done))
        return tuple(line for line in found if "==" in line and " " not in line)

    async def run(
        self, *command: str, environment: Mapping[str, str] | None = None, on_line: Progress = lambda line: None
    ) -> Done:
        """A child that ends with us."""
        with self.log.open("a") as log:

            def read(line: str) -> None:
                if not _BAR.match(line):
                    print(line, file=log, flush=True)
                on_line(line)

            print("$", *command, file=log, flush=True)
            isolated = {k: v for k, v in self.environment.items() if k not in _LEADS_ELSEWHERE}
            return await run_command(
                dying_with_me(command, "SIGKILL"),
                environment={**isolated, **(environment or {}), "PYTHONUNBUFFERED": "1"},
                on_line=read,
                kept_open=(self.lock,),
            )

    async def _pip(self, command: str, *arguments: str, reading: _PipLines) -> Done:
        bar = ("--progress-bar", "raw") if command == "install" and await self._knows_raw_bar() else ()
        return await self.run(self.python, *_PIP, command, *bar, *arguments, on_line=reading)

    async def _knows_raw_bar(self) -> bool:
        """Since pip 24.1."""
        said: list[str] = []
        await self.run(self.python, *_PIP, "--version", on_line=said.append)
        match = re.match(r"pip (\d+)\.(\d+)", said[-1] if said else "")
        return match is not None and (int(match[1]), int(match[2])) >= (24, 1)


class _PipLines:
    """Reads what pip prints and tells how far it is."""

    def __init__(self, step: str, progress: Progress) -> None:
        self._step, self._progress, self._file = step, progress, ""

    def __call__(self, line: str) -> None:
        said = self._said(line)
        if said:
            self._progress(f"{self._step}: {said}")

    def _said(self, line: str) -> str | None:
        if bar := _BAR.match(line):
            done, total = int(bar[1]), int(bar[2])
            return f"downloading {self._file}, {done // _MIB} of {total // _MIB} MiB" if total >= _MIB else None
        word, _, rest = line.partition(" ")
        match word:
            case "Collecting":
                return f"collecting {_package(rest)}"
            case "Downloading" | "Processing" | "Using":
                self._file = os.path.basename(rest.split(" (")[0])  # noqa: PTH119  # a URL as often as a path
                return f"fetching {self._file}"
            case "Installing":
                count = rest.count(",") + 1
                return "installing a package" if count == 1 else f"installing {count} packages"
            case "Uninstalling":
                return f"removing {rest.rstrip(':')}"
        return None


def _package(requirement: str) -> str:
    return re.split(r"[ <>=!~;\[(]", requirement, maxsplit=1)[0]


def _pip_said(done: Done) -> str:
    """Its last error, else the last thing it said."""
    errors = [line for line in done.last_lines if line.startswith("ERROR:")]
    return (errors or list(done.last_lines) or [f"pip ended with status {done.exit_status}"])[-1]
