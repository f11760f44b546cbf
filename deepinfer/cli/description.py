"""A deployment's spec in lines for people: what is always asked, and what differs from the defaults. Pure."""

from __future__ import annotations

import json
from typing import Any

from deepinfer.cli.views import View
from deepinfer.fleet.spec import DeploymentSpec, DockerOptions

_ALWAYS = ("model", "engine", "replicas")
_ROLLOUT = {
    "max_surge": "{} max surge",
    "max_unavailable": "{} max unavailable",
    "deadline_seconds": "{} s deadline",
    "new_generation_percent": "{} % of requests to the new generation",
}


def spec_lines(spec: View) -> list[str]:
    """Fields have the names that they have in a file; one that only a newer server has is shown if it says anything."""
    defaults = DeploymentSpec(model="m").model_dump(mode="json") | {"docker": DockerOptions().model_dump(mode="json")}
    told = {field: _told(field, value, defaults.get(field)) for field, value in spec.items()}
    shown = {field: text for field, text in told.items() if text}
    width = max(map(len, shown), default=0) + 3
    return [f"{field + ':':<{width}}{text}" for field, text in shown.items()]


def _told(field: str, value: Any, default: Any) -> str:
    """Empty for what is not worth a line."""
    if field not in _ALWAYS and (value == default or value in (None, {}, [])):
        return ""
    if field == "rollout":
        said = {part: number for part, number in value.items() if number is not None}
        return ", ".join(_ROLLOUT.get(part, f"{part} {{}}").format(number) for part, number in said.items())
    if isinstance(value, dict):
        usual = default if isinstance(default, dict) else {}
        return ", ".join(
            f"{key}={_text(part)}" for key, part in value.items() if key not in usual or part != usual[key]
        )
    return ", ".join(map(_text, value)) if isinstance(value, list) else _text(value)


def _text(value: Any) -> str:
    """As it would be typed, in quotes where it would be misread."""
    if isinstance(value, str) and value and not set(value) & set(' ,="\n'):
        return value
    return json.dumps(value, ensure_ascii=False)
