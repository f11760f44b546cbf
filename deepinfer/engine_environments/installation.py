"""Makes the environment of an engine: all of it, or nothing is left of it.

One at a time makes the same environment; the marker that makes it count is written last. What other programs of this
machine should know of a new environment they see in its folder's parent, where something changes at the very end.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from packaging.specifiers import SpecifierSet
from packaging.version import Version

from deepinfer.engine_environments.choice import quoted, refusing_line
from deepinfer.engine_environments.compatibility import Recipe, compatibility, lines
from deepinfer.engine_environments.environment import (
    FLAGS,
    MARKER,
    UNFINISHED,
    Environment,
    EnvironmentRecord,
    clear_leftovers,
    discard,
    environment_at,
    is_leftover,
    lock_file,
    name_of,
)
from deepinfer.engine_environments.flags import EngineFlags
from deepinfer.engine_environments.steps import Progress, StepFailed, Workbench
from deepinfer.fleet.durable_file import write_durably
from deepinfer.fleet.errors import DeepinferError
from deepinfer.fleet.exclusive import exclusive
from deepinfer.fleet.own_package import with_own_package
from deepinfer.fleet.resources import InstalledEngine
from deepinfer.fleet.told_time import told_time

_BELL = ".changed"


class NotInstalled(DeepinferError):
    """The engine could not be installed; nothing of it is left."""


@dataclass(frozen=True)
class Outcome:
    environment: Environment
    is_new: bool


async def install(engine: InstalledEngine, engines: Path, variables: Mapping[str, str], progress: Progress) -> Outcome:
    """Its environment below `engines`, made if it is not there. Raises `NotInstalled`."""
    recipe = _recipe(engine)
    name = name_of(engine)
    waiting = f"waiting for another installation of {name}"
    async with exclusive(lock_file(engines, name), lambda: progress(waiting)) as lock:
        if (found := environment_at(engines / name)) is not None:
            return Outcome(found, is_new=False)
        for leftover in clear_leftovers(engines):
            progress(f"removed what a killed installation left of {leftover}")
        folder = engines / name
        if is_leftover(folder):  # its lock is held, by us
            discard(folder)
        log = engines / ".logs" / f"{name}.log"
        bench = Workbench(folder, variables, log, lock, progress)
        return Outcome(await _made(bench, engine, recipe), is_new=True)


def _recipe(engine: InstalledEngine) -> Recipe:
    recipe = compatibility().install.get(engine.kind, {}).get(engine.accelerator)
    if recipe is None:
        raise NotInstalled(f"There is no recipe for {engine.kind} on {engine.accelerator}.")
    if line := refusing_line(engine, lines()):
        raise NotInstalled(f"{engine.kind} {engine.version} is not supported: {quoted(line)}")
    return recipe


async def _made(bench: Workbench, engine: InstalledEngine, recipe: Recipe) -> Environment:
    _check_room(bench.folder, recipe)
    try:
        bench.folder.mkdir(mode=0o700)
    except FileExistsError as error:
        raise NotInstalled(f"{bench.folder} is there and is not an engine of deepinfer's; move it away.") from error
    try:
        (bench.folder / UNFINISHED).touch()
        bench.log.parent.mkdir(exist_ok=True)
        bench.log.write_text("")
        return await _built(bench, engine, recipe)
    except StepFailed as error:
        message = f"{engine.kind} {engine.version} for {engine.accelerator} could not be installed: {error}"
        raise NotInstalled(f"{message} (nothing of it is left; {bench.log} has everything that was printed)") from error
    finally:
        if environment_at(bench.folder) is None:
            bench.progress(f"removing what there is of {bench.folder.name}")
            discard(bench.folder)


async def _built(bench: Workbench, engine: InstalledEngine, recipe: Recipe) -> Environment:
    steps = [step.requirement for step in recipe.steps if SpecifierSet(step.only).contains(engine.version)]
    total = len(steps) + 3
    await _venv(_numbered(bench, 1, total))
    for number, requirement in enumerate(steps, start=2):
        wanted = requirement.format(version=engine.version)
        await _numbered(bench, number, total).pip_install(wanted, extra_index=recipe.extra_index)
    await _add_what_the_shim_needs(_numbered(bench, total - 1, total))
    trying = _numbered(bench, total, total)
    removed = await _without_what_does_not_load(trying, recipe)
    version = await _try_engine(trying, recipe)
    if version.release != Version(engine.version).release:
        raise StepFailed(f"what came says that it is {version}.")
    record = EnvironmentRecord(
        engine=engine,
        python=sys.version.partition(" ")[0],
        packages=len(await bench.packages()),
        size_bytes=_size(bench.folder),
        removed=removed,
        made_at=told_time(),
    )
    (bench.folder / UNFINISHED).unlink()
    write_durably(bench.folder / MARKER, record.to_json())
    ring(bench.folder.parent)
    return Environment(bench.folder, record)


def ring(engines: Path) -> None:
    """Change something directly in the folder that agents watch."""
    write_durably(engines / _BELL, b"")


async def _venv(bench: Workbench) -> None:
    bench.progress("making a Python environment")
    done = await bench.run(sys.executable, "-m", "venv", str(bench.folder))
    if done.exit_status:
        raise StepFailed(f"python -m venv: {' '.join(done.last_lines[-2:]) or done.exit_status}")
    with suppress(StepFailed):  # an older pip does it too, but cannot tell how far it is
        await bench.pip_install("--upgrade", "pip")


async def _add_what_the_shim_needs(bench: Workbench) -> None:
    """Constrained to what is there, so that no pin of the engine's moves."""
    constraints = bench.folder / "constraints.txt"
    constraints.write_text("\n".join(await bench.packages()) + "\n")
    await bench.pip_install("--constraint", str(constraints), *compatibility().shim.requirements)


async def _without_what_does_not_load(bench: Workbench, recipe: Recipe) -> dict[str, str]:
    """Remove packages that would break the engine; answers what is missed without them."""
    there = {package.partition("==")[0].lower() for package in await bench.packages()}
    removed = {}
    for package in recipe.optional:
        if package.module in there and (why := await _import_error(bench, package.module)):
            await bench.pip_uninstall(package.module)
            removed[package.module] = package.without
            bench.progress(f"{package.module} does not load here ({why}) and was removed: {package.without}")
    return removed


async def _try_engine(bench: Workbench, recipe: Recipe) -> Version:
    """Everything that a start will import is imported; the engine's flags are written down. Answers its version."""
    bench.progress(f"trying {recipe.module}")
    target, package = bench.folder / FLAGS, bench.folder / "package"
    ours = with_own_package({}, package)
    for module, *arguments in ((recipe.flags, str(target)), ("deepinfer.engine_environments.shim_trial",)):
        done = await bench.run(bench.python, "-P", "-m", module, *arguments, environment=ours)
        if done.exit_status:
            raise StepFailed(f"it does not load: {done.last_lines[-1] if done.last_lines else done.exit_status}")
    shutil.rmtree(package)
    return Version(EngineFlags.model_validate_json(target.read_bytes()).version)


async def _import_error(bench: Workbench, module: str) -> str | None:
    bench.progress(f"trying {module}")
    done = await bench.run(bench.python, "-P", "-c", f"import {module}")
    if done.exit_status == 0:
        return None
    return done.last_lines[-1][:200] if done.last_lines else f"status {done.exit_status}"


def _numbered(bench: Workbench, number: int, total: int) -> Workbench:
    return replace(bench, progress=lambda text: bench.progress(f"{bench.folder.name} {number}/{total}: {text}"))


def _check_room(folder: Path, recipe: Recipe) -> None:
    free = shutil.disk_usage(folder.parent).free
    if free < recipe.disk_gib * 2**30:
        raise NotInstalled(
            f"{folder.parent} has {free / 2**30:.1f} GiB free, and this takes {recipe.disk_gib:g} GiB; make room, "
            "or name another place with DEEPINFER_ENGINES_DIR."
        )


def _size(folder: Path) -> int:
    """On the disk, in bytes."""
    return sum(os.lstat(os.path.join(at, name)).st_blocks * 512 for at, _, names in os.walk(folder) for name in names)  # noqa: PTH118
