"""Which line of an engine's log becomes the reason. The logs are vLLM 0.32's own, shortened."""

from __future__ import annotations

from pathlib import Path

import pytest

from deepinfer.agent.root_cause import last_error, root_cause, told_failure

LOGS = Path(__file__).parent / "engine_logs"


@pytest.mark.parametrize(
    ("log", "begin"),
    [
        (
            "no_config",
            "pydantic_core._pydantic_core.ValidationError: 1 validation error for ModelConfig: Value error, In",
        ),
        ("context_too_long", "ValueError: To serve at least one request with the model's max seq len (8192)"),
        ("truncated_weights", "safetensors._safetensors_rust.SafetensorError: Error while deserializing header"),
        ("worker_killed", "Worker proc VllmWorker-0 died unexpectedly (exit code: -9)"),
    ],
)
def test_the_deepest_process_is_quoted(log: str, begin: str) -> None:
    found = root_cause((LOGS / f"{log}.log").read_text().splitlines())
    assert found is not None and found.startswith(begin)


@pytest.mark.parametrize(("code", "tells"), [("-9", True), ("1", True), ("None", True), ("0", False)])
def test_a_worker_that_died_is_told_whatever_vllm_knew_of_it(code: str, tells: bool) -> None:
    prefix = "(EngineCore pid=4606) ERROR 11-21 17:44:17 [multiproc_executor.py:315] "
    line = f"{prefix}Worker proc VllmWorker-0 died unexpectedly (exit code: {code}), shutting down executor."
    assert (root_cause([line]) is not None) is tells


def test_tracebacks_of_many_requests_do_not_hide_it() -> None:
    end = (LOGS / "worker_killed.log").read_text().splitlines()
    found = root_cause([*end, *(LOGS / "core_killed.log").read_text().splitlines() * 100])
    assert found is not None and found.startswith("Worker proc VllmWorker-0 died unexpectedly")


def test_a_core_that_was_killed_said_nothing() -> None:
    """All that is printed of it is the API side's own trouble."""
    assert root_cause((LOGS / "core_killed.log").read_text().splitlines()) is None


@pytest.mark.parametrize(
    ("lines", "found"),
    [
        (["Traceback", "ValueError: no such layer", "bye"], "ValueError: no such layer"),
        (["ValueError: of a request long ago", *["INFO ok"] * 30], None),
        (["one", "two"], None),
        ([], None),
        (["RuntimeError: Engine core initialization failed. See root cause above."] * 2, None),
    ],
)
def test_an_engine_of_one_process(lines: list[str], found: str | None) -> None:
    told = root_cause(lines)
    assert told is None if found is None else told is not None and told.startswith(found)


def test_a_line_that_points_at_another_is_better_than_none() -> None:
    assert (
        last_error(["RuntimeError: Engine core initialization failed. See root cause above.", "  warn()"]) is not None
    )


def test_what_the_shim_says_counts_whatever_other_processes_print_after_it() -> None:
    reason = "its core (process 7) was killed by SIGKILL"
    assert told_failure(["x", f"engine failed: {reason}", *["(Worker pid=8) INFO leaving"] * 30]) == reason
    assert told_failure(["an engine failed: not ours"]) is None
