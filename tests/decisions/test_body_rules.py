"""What a body may not say: where engines may fetch from, and what they would obey that is not a client's to say."""

from __future__ import annotations

from typing import Any

import pytest

from deepinfer.control_plane.gateway.body import read_json
from deepinfer.control_plane.gateway.body_rules import MOST_CHOICES, MOST_NESTED, check_said, check_url
from deepinfer.control_plane.gateway.multipart import model_in_form
from deepinfer.fleet.config import ServeConfig
from deepinfer.fleet.errors import InvalidRequest

ALLOWED = frozenset(("images.example.com", "cdn.example.com:8443"))
FOREIGN = "http://169.254.169.254/latest/meta-data"


def content(*parts: Any) -> dict[str, Any]:
    return {"model": "chat", "messages": [{"role": "user", "content": list(parts)}]}


@pytest.mark.parametrize(
    "url",
    [
        "data:image/png;base64,aGk=",
        "https://images.example.com",
        "http://images.example.com/a.png?b=c#d",
        "https://images.example.com?a",
        "https://cdn.example.com:8443/a",
    ],
)
def test_a_url_that_holds_its_content_or_is_of_an_allowed_domain_passes(url: str) -> None:
    check_url(url, "image_url", ALLOWED)


@pytest.mark.parametrize(
    "url",
    [
        FOREIGN,
        "https://images.example.com.evil.example/",
        "https://evil.example/images.example.com",
        "https://images.example.com@evil.example/",
        "https://evil.example\\@images.example.com/",
        "https://evil.example\\.images.example.com/",
        "https://images.example.com\\@evil.example/",
        "https://images.example.com\\.evil.example/",
        "https://images.example.com:80@evil.example/",
        "https://images.example.com:8443/",
        "https://cdn.example.com/",
        "https://images.example.com./",
        "https://IMAGES.example.com/",
        "HTTPS://images.example.com/",
        "https:images.example.com",
        "https:///images.example.com/",
        "https:/images.example.com/",
        "//images.example.com/",
        "https://images.example.com/a\\b",
        "https://images.example.com/a b",
        "https://images.example.com/\n",
        "https://images.example.com\t/",
        "ht\ntps://images.example.com/",
        " https://images.example.com/",
        "https://images.example.com#@evil.example/",
        "https://images。example。com/",
        "https://\u0131mages.example.com/",
        "https://images.example.com%2eevil.example/",
        "https://[::1]/",
        "http://2130706433/",
        "http://0x7f.1/",
        "ftp://images.example.com/",
        "file:///etc/passwd",
        "file:/etc/passwd",
        "/etc/passwd",
        "gopher://images.example.com/",
        "DATA:,a",
        " data:,a",
        "",
    ],
)
def test_any_other_url_is_refused(url: str) -> None:
    with pytest.raises(InvalidRequest, match="not a data: URL") as caught:
        check_url(url, "image_url", ALLOWED)
    assert caught.value.param == "image_url"


@pytest.mark.parametrize(
    ("said", "field"),
    [
        (content({"type": "image_url", "image_url": {"url": FOREIGN}}), "messages[0].content[0].image_url"),
        (content({"type": "image_url", "image_url": FOREIGN}), "messages[0].content[0].image_url"),
        (
            content({"type": "text"}, {"type": "audio_url", "audio_url": {"url": FOREIGN}}),
            "messages[0].content[1].audio_url",
        ),
        (content({"type": "video_url", "video_url": {"url": FOREIGN}}), "messages[0].content[0].video_url"),
        (content({"video_url": ["data:,", FOREIGN]}), "messages[0].content[0].video_url"),
        (content({"type": "image", "source": {"type": "url", "url": FOREIGN}}), "messages[0].content[0].source"),
        (content({"type": "document", "source": {"url": FOREIGN}}), "messages[0].content[0].source"),
        (content({"type": "url", "url": FOREIGN}), "messages[0].content[0].url"),
        (
            content({"type": "tool_result", "content": [{"type": "image", "source": {"type": "url", "url": FOREIGN}}]}),
            "messages[0].content[0].content[0].source",
        ),
        ({"input": [{"content": [{"type": "input_image", "image_url": FOREIGN}]}]}, "input[0].content[0].image_url"),
        ({"input": [{"content": [{"type": "input_file", "file_url": FOREIGN}]}]}, "input[0].content[0].file_url"),
        (
            {"data_1": {"content": [{"type": "image_url", "image_url": {"url": FOREIGN}}]}},
            "data_1.content[0].image_url",
        ),
        ({"image_data": FOREIGN}, "image_data"),
        ({"image_data": ["aGk=", "/etc/a.png"]}, "image_data"),
        ({"audio_data": "file:///etc/passwd"}, "audio_data"),
        (content({"type": "image", "image": " " * 5000 + FOREIGN}), "messages[0].content[0].image"),
        ({"kv_transfer_params": {"remote_host": "10.0.0.1"}}, "kv_transfer_params"),
        ({"vllm_xargs": {"kv_transfer_params": "x"}}, "vllm_xargs.kv_transfer_params"),
        ({"bootstrap_host": "10.0.0.1"}, "bootstrap_host"),
        ({"bootstrap_room": [1]}, "bootstrap_room"),
        ({"data_parallel_rank": 0}, "data_parallel_rank"),
        ({"n": MOST_CHOICES + 1}, "n"),
        ({"n": True}, "n"),
        ({"best_of": 10**30}, "best_of"),
    ],
)
def test_what_an_engine_would_obey_is_refused_by_name(said: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidRequest, match=field.replace("[", r"\[")) as caught:
        check_said(said, ALLOWED)
    assert caught.value.param == field


@pytest.mark.parametrize(
    "said",
    [
        content({"type": "text", "text": f"look at {FOREIGN}"}),
        content({"type": "image_url", "image_url": {"url": "data:image/png;base64,aGk="}}),
        content({"type": "image_url", "image_url": {"url": "https://images.example.com/a.png"}}),
        content({"type": "image_url", "image_url": None, "uuid": "seen before"}),
        content({"type": "input_audio", "input_audio": {"data": "aGk=", "format": "wav"}}),
        content({"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "aGk="}}),
        content({"type": "document", "source": {"type": "text", "data": FOREIGN}, "title": "a"}),
        content({"type": "tool_use", "id": "1", "name": "open", "input": {"url": FOREIGN, "image_url": FOREIGN}}),
        content({"type": "web_search_result", "url": FOREIGN}),
        {"image_data": "/9j/4AAQSkZJRgABAQ=="},
        {"image_data": "a" * 5000 + "="},
        {"documents": [{"source": "wikipedia", "url": FOREIGN, "text": "a"}]},
        {"tools": [{"parameters": {"properties": {"image_url": {"type": "string", "url": FOREIGN}}}}]},
        {"metadata": {"image_url": FOREIGN}},
        {"kv_transfer_params": None, "n": None, "best_of": MOST_CHOICES},
        {"api_base": FOREIGN, "base_url": FOREIGN, "model_path": "/etc"},  # nobody obeys these
    ],
)
def test_what_no_engine_fetches_passes(said: dict[str, Any]) -> None:
    check_said(said, ALLOWED)


def test_escapes_hide_nothing_and_of_two_fields_the_last_counts_as_for_engines() -> None:
    escaped = rb'{"model":"m","im\u0061ge_url":"http:\/\/169.254.169.254"}'
    with pytest.raises(InvalidRequest, match="image_url"):
        read_json(escaped, ALLOWED)
    with pytest.raises(InvalidRequest, match="image_url"):
        read_json(b'{"image_url":"data:,a","image_url":"http://10.0.0.1"}', ALLOWED)
    assert read_json(b'{"image_url":"http://10.0.0.1","image_url":"data:,a"}', ALLOWED) == {"image_url": "data:,a"}


@pytest.mark.parametrize("name", ["a", "tools"])
def test_nesting_is_bounded_also_where_words_are_free(name: str) -> None:
    def nested(levels: int) -> Any:
        return {name: nested(levels - 1)} if levels else "end"

    check_said(nested(MOST_NESTED), ALLOWED)
    with pytest.raises(InvalidRequest, match="nested too deeply"):
        check_said(nested(MOST_NESTED + 1), ALLOWED)


def form(*fields: tuple[str, str]) -> bytes:
    parts = (f'--X\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n' for name, value in fields)
    return "".join(parts).encode() + b"--X--\r\n"


def test_a_form_is_held_to_the_same() -> None:
    kind = b"multipart/form-data; boundary=X"
    long = "data:image/png;base64," + "a" * 5000
    assert model_in_form(form(("model", "m"), ("url", long), ("prompt", FOREIGN)), kind, ALLOWED) == "m"
    for name in ("url", "image_url", "url[]"):
        with pytest.raises(InvalidRequest, match="not a data: URL"):
            model_in_form(form(("model", "m"), (name, FOREIGN)), kind, ALLOWED)
    with pytest.raises(InvalidRequest, match="1000 parts"):
        model_in_form(form(*[("a", "b")] * 1001), kind, ALLOWED)


@pytest.mark.parametrize(
    "domain", ["10.0.0.1", "localhost", "EXAMPLE.com", "https://example.com", "a.b/c", "[::1]", "a.1"]
)
def test_only_a_domain_can_be_allowed(domain: str) -> None:
    with pytest.raises(ValueError, match="is no domain"):
        ServeConfig(allowed_media_domains=(domain,))
    assert ServeConfig(allowed_media_domains=tuple(ALLOWED))
