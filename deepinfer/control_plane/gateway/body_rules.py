"""What a request's JSON may not say, because an engine would obey. Pure.

*   A URL where an engine takes media: it would fetch from inside. The bytes themselves, as a data: URL, are fine, and
    so are domains that the configuration allows. Two parsers may see two hosts in one URL, so none is asked: only a
    plain one passes, whose host is the same for all of them, and it goes to the engine as it came.
*   Where to route to inside an engine, or from where it takes a KV cache.
*   More choices, or deeper nesting, than any program needs.
"""

from __future__ import annotations

import re
from typing import Any, Final

from deepinfer.fleet.errors import InvalidRequest

MOST_CHOICES: Final = 128
MOST_NESTED: Final = 64

_URLS: Final = frozenset(("image_url", "audio_url", "video_url", "file_url"))
_URL_OR_DATA: Final = frozenset(("image_data", "audio_data", "video_data", "image", "audio", "video"))
_INSIDE: Final = frozenset(
    (
        "kv_transfer_params",
        "ec_transfer_params",
        "bootstrap_host",
        "bootstrap_port",
        "bootstrap_room",
        "data_parallel_rank",
        "routed_dp_rank",
        "disagg_prefill_dp_rank",
    )
)
_LOOKED_AT: Final = _URLS | _URL_OR_DATA | _INSIDE | {"url", "source"}
_ANY_WORDS: Final = frozenset(
    ("tools", "functions", "response_format", "metadata", "structured_outputs", "guided_json", "chat_template_kwargs")
)
"""The client's own words for its own programs, in which a URL is only text."""
_TOOL_CALLS: Final = frozenset(("tool_use", "server_tool_use", "mcp_tool_use"))
_PLAIN_URL = re.compile(r"https?://([a-z0-9.-]+(?::[0-9]{1,5})?)(?:[/?][!-\[\]-~]*)?")
_DATA = re.compile(r"[A-Za-z0-9+/=_-]*")
_DATA_SAMPLE = 4096  # longer than any path; of what is longer the beginning tells whether it is a URL

_HOLDERS: Final = frozenset((dict, list))
_Where = tuple[Any, str | int] | None


def check_said(fields: dict[str, Any], allowed_domains: frozenset[str]) -> None:
    """Raises `InvalidRequest` that names the field and the next step."""
    if "n" in fields or "best_of" in fields:
        _check_choices(fields)
    _look(fields, None, 1, allowed_domains)


def check_url(url: str, field: str, allowed_domains: frozenset[str]) -> None:
    """Raises `InvalidRequest` unless the URL holds its content, or leads where engines may fetch from."""
    if url.startswith("data:"):
        return
    plain = _PLAIN_URL.fullmatch(url)
    if plain is None or plain[1] not in allowed_domains:
        raise InvalidRequest(
            f"'{field}' is not a data: URL, and engines may not fetch from there. Send the content itself as "
            "data:TYPE;base64,…, or have the domain added to allowed_media_domains of [serve].",
            field,
        )


def _check_choices(fields: dict[str, Any]) -> None:
    choices = fields.get("n")
    if choices is not None and type(choices) is not int:
        raise InvalidRequest("'n' must be an integer.", "n")
    for name in ("n", "best_of"):  # newer engines do not know the second: what else it is, they ignore
        asked = fields.get(name)
        if type(asked) is int and asked > MOST_CHOICES:
            raise InvalidRequest(f"'{name}' is {asked}; ask for at most {MOST_CHOICES}.", name)


def _look(value: Any, where: _Where, depth: int, allowed: frozenset[str] | None) -> None:
    """At all that is in a list or an object. Nothing but depth matters where `allowed` is None."""
    if depth > MOST_NESTED:
        raise InvalidRequest(f"The body's JSON is nested too deeply; use at most {MOST_NESTED} levels.")
    if type(value) is list:
        for index, inner in enumerate(value):
            if type(inner) in _HOLDERS:
                _look(inner, (where, index), depth + 1, allowed)
        return
    if allowed is not None and not _LOOKED_AT.isdisjoint(value):
        for name in _LOOKED_AT.intersection(value):
            _check_field(value, name, (where, name), allowed)
    for name, inner in value.items():
        if type(inner) in _HOLDERS:
            free = (where is None and name in _ANY_WORDS) or (name == "input" and value.get("type") in _TOOL_CALLS)
            _look(inner, (where, name), depth + 1, None if free else allowed)


def _check_field(parent: dict[str, Any], name: str, where: _Where, allowed: frozenset[str]) -> None:
    value = parent[name]
    if value is None:
        return
    if name in _INSIDE:
        field = _path(where)
        raise InvalidRequest(f"'{field}' is not the client's to choose here; leave it out.", field)
    if name == "source" or (name == "url" and parent.get("type") != "url"):
        urls = [value.get("url")] if name == "source" and type(value) is dict else []
    else:
        urls = value if type(value) is list else [value.get("url") if type(value) is dict else value]
    for url in urls:
        if type(url) is str and not (name in _URL_OR_DATA and _is_data(url)):
            check_url(url, _path(where), allowed)


def _is_data(value: str) -> bool:
    return _DATA.fullmatch(value if len(value) <= _DATA_SAMPLE else value[:64]) is not None


def _path(where: _Where) -> str:
    """Such as messages[0].content[1].image_url."""
    if where is None:
        return ""
    before, last = _path(where[0]), where[1]
    if type(last) is int:
        return f"{before}[{last}]"
    return f"{before}.{last}" if before else str(last)
