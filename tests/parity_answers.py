"""What of two servers' answers to the same request must be equal, and what may differ: names, clocks, and how a
stream's text was cut into pieces.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import httpx

OWN = frozenset(
    {
        "id",
        "item_id",
        "call_id",
        "request_id",
        "response_id",
        "created",
        "created_at",
        "completed_at",
        "sequence_number",  # counts events, so also how the text was cut
        "system_fingerprint",
        "kv_transfer_params",
        "cached_tokens",  # depends on what was asked before, and how often
    }
)
"""Fields whose values are each server's own; that they are there, and their types, is compared."""
TEXTS = frozenset({"content", "text", "delta", "arguments", "partial_json", "thinking", "reasoning"})
"""Fields that carry a stream's text in pieces."""
ENDS = frozenset({"finish_reason", "stop_reason", "usage", "error", "status"})


@dataclass(frozen=True)
class Answer:
    """A whole answer, as a client sees it. `content` is the JSON, the text, or the list of a stream's events."""

    status: int
    content_type: str
    content: Any

    def comparable(self) -> Any:
        """Equal for two servers that answer alike."""
        content = told(self.content) if self.content_type == "text/event-stream" else without_own(self.content)
        return self.status, self.content_type, content


def ask(url: str, path: str, body: Any) -> Answer:
    """POST, or GET where `body` is None; bytes travel as they are."""
    if body is None:
        answer = httpx.get(url + path, timeout=60)
    else:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"}
        answer = httpx.post(url + path, content=content, headers=headers, timeout=60)
    kind = answer.headers.get("content-type", "").partition(";")[0]
    return Answer(answer.status_code, kind, _content(kind, answer.text))


def told(events: list[Any]) -> dict[str, Any]:
    """What a stream says, however it was cut: tokens that wait for the reader share an event.

    The events of several choices may be mixed in any way; each choice's own order counts. The usage so far that an
    unfinished choice tells counts tokens up to a cut: that it is told is seen in the shapes. The last event may carry a
    piece of the text too: which one is a matter of the cut.
    """
    events = sorted(events, key=_choice)
    texts: dict[str, str] = {}
    ends: list[Any] = []
    for event in events:
        data = event["data"]
        _collect({**data, "usage": None} if _unfinished(data) else data, texts, ends)
    return {"shapes": shape(events), "texts": texts, "ends": ends, "last": without_own(_without_texts(events[-1]))}


def without_own(value: Any) -> Any:
    """The same with the servers' own values replaced by their types."""
    if isinstance(value, dict):
        return {key: shape(part) if key in OWN else without_own(part) for key, part in value.items()}
    if isinstance(value, list):
        return [without_own(part) for part in value]
    return round(value, 4) if isinstance(value, float) else value


def shape(value: Any) -> Any:
    """Keys and types. Neighbours of equal shape in a list count once: how many there are is seen elsewhere."""
    if isinstance(value, dict):
        if _is_by_token(value):
            return {"TOKEN": "float"}
        return {key: shape(part) for key, part in value.items()}
    if isinstance(value, list):
        return [form for form, _ in groupby(map(shape, value))]
    return type(value).__name__


def _content(kind: str, text: str) -> Any:
    if kind == "application/json":
        return json.loads(text)
    return list(_events(text)) if kind == "text/event-stream" else text


def _events(text: str) -> Iterator[Any]:
    """Each event's fields; JSON data as JSON."""
    assert text.endswith("\n\n"), f"the stream broke off: {text[-200:]!r}"
    for block in text.removesuffix("\n\n").split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines())
        data = fields.get("data", "")
        yield {**fields, "data": json.loads(data) if data.startswith("{") else data}


def _choice(event: dict[str, Any]) -> float:
    """The index of the choice an event belongs to; what belongs to none comes last, in its order."""
    choices = event["data"].get("choices") if isinstance(event["data"], dict) else None
    return choices[0]["index"] if choices else math.inf


def _without_texts(value: Any) -> Any:
    """The same with the pieces that `_collect` puts together replaced by their types."""
    if isinstance(value, dict):
        return {key: shape(part) if _is_text(key, part) else _without_texts(part) for key, part in value.items()}
    return [_without_texts(part) for part in value] if isinstance(value, list) else value


def _is_text(key: str, part: Any) -> bool:
    return key in TEXTS and isinstance(part, str)


def _is_by_token(value: dict[str, Any]) -> bool:
    """As completions' top_logprobs are: the keys are text, and come in other pieces when a stream is cut otherwise."""
    return bool(value) and all(isinstance(part, float) for part in value.values())


def _unfinished(data: Any) -> bool:
    choices = data.get("choices") if isinstance(data, dict) else None
    return choices[0].get("finish_reason") is None if choices else False


def _collect(value: Any, texts: dict[str, str], ends: list[Any]) -> None:
    if isinstance(value, list):
        for part in value:
            _collect(part, texts, ends)
    if not isinstance(value, dict):
        return
    if _is_by_token(value):
        texts["by token"] = texts.get("by token", "") + "".join(value)
    for key, part in value.items():
        if key in ENDS and part is not None:
            ends.append((key, without_own(part)))
        if _is_text(key, part):
            place = f"{value.get('index', '')} {key}"
            texts[place] = texts.get(place, "") + part
        else:
            _collect(part, texts, ends)
