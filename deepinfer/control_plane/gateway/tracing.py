"""Whether requests are traced, and where that begins and ends. OpenTelemetry is imported only if they are."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from deepinfer.fleet.errors import DeepinferError

if TYPE_CHECKING:
    from deepinfer.control_plane.gateway.spans import Spans

END_SECONDS = 3.0
"""For the last spans, when the collector is away."""
_OTLP = "OTEL_EXPORTER_OTLP_"


class CannotTrace(DeepinferError):
    """Requests cannot be traced."""


@asynccontextmanager
async def tracing(asked: bool) -> AsyncIterator[Spans | None]:
    """None if neither the configuration nor OpenTelemetry's own variables ask for it. Raises `CannotTrace`."""
    why = "[serve] tracing" if asked else asked_by(os.environ)
    if why is None:
        yield None
        return
    _refuse_other_protocols(os.environ)
    try:
        from deepinfer.control_plane.gateway.spans import Spans
    except ImportError as error:
        raise CannotTrace(
            f"{why} asks for traces, but {error.name} is not installed; "
            "install deepinfer with its extra: pip install 'deepinfer[tracing]'."
        ) from error
    spans = Spans()
    try:
        yield spans
    finally:
        closing = threading.Thread(target=spans.close, name="last spans", daemon=True)
        closing.start()
        await asyncio.to_thread(closing.join, END_SECONDS)


def asked_by(environ: Mapping[str, str]) -> str | None:
    """The variable that asks for traces."""
    if environ.get("OTEL_SDK_DISABLED", "").lower() == "true" or environ.get("OTEL_TRACES_EXPORTER") == "none":
        return None
    return next((name for name in (f"{_OTLP}TRACES_ENDPOINT", f"{_OTLP}ENDPOINT") if environ.get(name)), None)


def _refuse_other_protocols(environ: Mapping[str, str]) -> None:
    for name in (f"{_OTLP}TRACES_PROTOCOL", f"{_OTLP}PROTOCOL"):
        if environ.get(name, "http/protobuf") != "http/protobuf":
            raise CannotTrace(f"{name} is {environ[name]}; traces are sent by http/protobuf only, to port 4318 mostly.")
