"""The rules of the code's shape that a program can check. Import directions are import-linter's (`make check`)."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "deepinfer"
SOURCES = sorted(path for path in PACKAGE.rglob("*.py") if not path.name.endswith("_descriptor.py"))
MOST_LINES, MOST_FUNCTION_LINES, MOST_PARAMETERS = 300, 50, 5
EMPTY_WORDS = {"utils", "util", "common", "manager", "helper", "helpers", "handler", "processor", "base", "misc"}
NOT_PURE = {"scheduler.py", "event_log.py", "connection.py", "contents_watch.py", "prompt_reading.py", "replicas.py"}
PURE = [
    *(
        f"control_plane/scheduler/{path.name}"
        for path in sorted((PACKAGE / "control_plane/scheduler").glob("*.py"))
        if path.name not in NOT_PURE
    ),
    "control_plane/gateway/continuation.py",
    "control_plane/gateway/continued_chunks.py",
    "control_plane/gateway/kv_transfer.py",
    "control_plane/gateway/sent_stream.py",
    "control_plane/management/consequences.py",
    "control_plane/management/history.py",
    "control_plane/management/progress.py",
    "control_plane/prompts/asked.py",
    "control_plane/prompts/cuts.py",
    *(
        f"control_plane/router/{path.name}"
        for path in sorted((PACKAGE / "control_plane/router").glob("*.py"))
        if path.name not in NOT_PURE
    ),
    "agent/plan.py",
    "etcd/pace.py",
    "agent/pressure.py",
    *(f"planning/{path.name}" for path in sorted((PACKAGE / "planning").glob("*.py")) if path.name != "model_files.py"),
    "fleet/safetensors_header.py",
    "fleet/cache.py",
    "fleet/sizes.py",
]
IMPURE = {"asyncio", "time", "random", "uuid", "grpc", "os"}


def functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def parameters(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Keyword-only ones do not count: they are named where it is called."""
    names = [argument.arg for argument in (*function.args.posonlyargs, *function.args.args)]
    return len(names) - (names[:1] in (["self"], ["cls"]))


def imported(path: Path) -> set[str]:
    nodes = list(ast.walk(ast.parse(path.read_text())))
    names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)]
    return {name.partition(".")[0] for name in names}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_files_and_functions_are_small(path: Path) -> None:
    lines = len(path.read_text().splitlines())
    assert lines <= MOST_LINES, f"{path.name} has {lines} lines"
    for function in functions(path):
        length = (function.end_lineno or function.lineno) - function.lineno + 1
        assert length <= MOST_FUNCTION_LINES, f"{function.name} has {length} lines"
        assert parameters(function) <= MOST_PARAMETERS, f"{function.name} has {parameters(function)} parameters"


def test_files_are_named_for_what_they_hold() -> None:
    nouns = [
        path for path in SOURCES for word in path.relative_to(PACKAGE).with_suffix("").parts if word in EMPTY_WORDS
    ]
    assert not nouns


@pytest.mark.parametrize("module", PURE)
def test_decisions_are_pure(module: str) -> None:
    assert not imported(PACKAGE / module) & IMPURE
