"""A container's root folder as a tar of this machine's files: Python, programs, and the libraries they load."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import Distribution
from pathlib import Path
from tarfile import DIRTYPE, TarFile, TarInfo
from typing import Final

PYTHON: Final = Path(sys.base_prefix, "bin", f"python{sys.version_info.major}.{sys.version_info.minor}")
_PIECE: Final = 1 << 16  # tarfile copies what it gathers again with every 16 KiB
_FOR_BUILDING: Final = Path(sysconfig.get_config_var("LIBPL")).name
_NOT_NEEDED: Final = {"site-packages", "dist-packages", "test", "idlelib", "tkinter", "ensurepip", _FOR_BUILDING}
_LIBRARY: Final = re.compile(r"^\t(?:\S+ => )?(/\S+) \(0x", re.MULTILINE)


class RootTar:
    """Files keep this machine's paths, if nothing else is said. `add_libraries` comes last."""

    def __init__(self, tar: TarFile) -> None:
        self._tar = tar
        self._loading: list[Path] = []  # programs and libraries, whose libraries are needed too
        self._there: set[str] = set()
        for folder in ("/bin", "/sbin", "/lib", "/lib64"):
            if Path(folder).is_symlink():  # as in most of today's distributions: into /usr
                self.add(Path(folder))
        self.add_text(Path("/etc/passwd"), "root:x:0:0:root:/root:/bin/sh\n", mode=0o644)
        self.add_folder(Path("/", "tmp"), mode=0o1777)
        for program in ("sh", "cat", "sleep"):
            self.add(Path("/usr/bin", program))

    def add(self, path: Path, *, at: Path | None = None) -> None:
        """A file, or a symbolic link with what it leads to."""
        name = _name(at or path)
        if name in self._there:
            return
        self._there.add(name)
        self._tar.add(path, name, recursive=False)
        if path.is_symlink():
            target = path.parent / path.readlink()
            if target.is_file():
                self.add(target.parent.resolve() / target.name)
        elif path.suffix == ".so" or ".so." in path.name or os.access(path, os.X_OK):
            self._loading.append(path)

    def add_tree(self, folder: Path, *, at: Path | None = None, without: Iterable[str] = ()) -> None:
        """`without`: names of folders right below it."""
        for inside, folders, files in os.walk(folder):
            if Path(inside) == folder:
                folders[:] = [each for each in folders if each not in without]
            for name in (*files, *(each for each in folders if Path(inside, each).is_symlink())):
                path = Path(inside, name)
                self.add(path, at=at and at / path.relative_to(folder))

    def add_distribution(self, package: Distribution, at: Path) -> None:
        for file in package.files or ():
            path = Path(file.locate())
            if ".." not in file.parts and path.is_file():  # no programs
                self.add(path, at=at / file)

    def add_python(self) -> None:
        """The one that runs this, with its standard library and no packages."""
        for name in ("python", "python3", PYTHON.name):
            if (PYTHON.parent / name).exists():
                self.add(PYTHON.parent / name)
        self.add_tree(Path(sysconfig.get_path("stdlib")), without=_NOT_NEEDED)

    def add_text(self, path: Path, text: str, *, mode: int = 0o755) -> None:
        info = TarInfo(_name(path))
        info.size, info.mode = len(text), mode
        self._tar.addfile(info, io.BytesIO(text.encode()))

    def add_folder(self, path: Path, *, mode: int) -> None:
        info = TarInfo(_name(path))
        info.type, info.mode = DIRTYPE, mode
        self._tar.addfile(info)

    def add_libraries(self) -> None:
        """What the programs and libraries in here load, and the loader."""
        binaries = [str(path) for path in self._loading if _is_elf(path)]
        said = subprocess.run(["ldd", *binaries], capture_output=True, text=True).stdout
        for library in sorted({Path(found) for found in _LIBRARY.findall(said)}):
            self.add(library.parent.resolve() / library.name)


def streamed(fill: Callable[[RootTar], None]) -> Iterator[bytes]:
    """The tar, made while it is read: some are gigabytes."""
    reading, writing = os.pipe()

    def write() -> None:
        with (
            os.fdopen(writing, "wb") as out,
            TarFile.open(fileobj=out, mode="w|", bufsize=_PIECE) as tar,
        ):
            root = RootTar(tar)
            fill(root)
            root.add_libraries()

    with ThreadPoolExecutor(1) as pool, os.fdopen(reading, "rb") as pieces:
        written = pool.submit(write)
        while piece := pieces.read(_PIECE):
            yield piece
        written.result()


def _name(path: Path) -> str:
    return str(path).removeprefix("/")


def _is_elf(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == b"\x7fELF"
