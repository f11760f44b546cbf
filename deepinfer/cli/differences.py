"""Where two specs differ, field by field. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, NamedTuple

from deepinfer.cli.views import View


class Difference(NamedTuple):
    """One field, or one part of a field that is an object."""

    field: str
    before: Any
    after: Any

    def line(self) -> str:
        return f"{self.field}: {_text(self.before)} -> {_text(self.after)}"


def differences(before: View, after: View) -> list[Difference]:
    """By the fields of `after`, in its order; a field that is not in `before` was null."""
    return list(_differences(before, after))


def _differences(before: View, after: View, prefix: str = "") -> Iterator[Difference]:
    for field in dict.fromkeys([*after, *(before if prefix else ())]):
        one, other = before.get(field), after.get(field)
        if isinstance(one, dict) and isinstance(other, dict):
            yield from _differences(one, other, f"{prefix}{field}.")
        elif one != other:
            yield Difference(f"{prefix}{field}", one, other)


def _text(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
