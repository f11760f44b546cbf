"""The name an alias stands for, put where the client named the alias; all else as it was."""

from __future__ import annotations

import json

import pytest

from deepinfer.control_plane.gateway.renaming import renamed
from deepinfer.engine_shim.frames import EngineCall

FORM = (
    b'--x\r\nContent-Disposition: form-data; name="model"\r\n\r\n%s\r\n'
    b'--x\r\nContent-Disposition: form-data; name="file"; filename="model"\r\n\r\n\xff\x00--y model\r\n--x--\r\n'
)


def call(body: bytes, content_type: bytes = b"application/json", query: bytes = b"") -> EngineCall:
    headers = ((b"content-type", content_type), (b"content-length", b"%d" % len(body)), (b"x-request-id", b"1"))
    return EngineCall("POST", "/v1/chat/completions", query, headers, body)


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ('"model": "gpt-4o", "n": 1.10e2', '"model":"chat","n":1.10e2'),
        ('"a": {"model": "gpt-4o"}, "model": "gpt-4o"', '"a":{"model": "gpt-4o"},"model":"chat"'),
        ('"model": "x", "model": "gpt-4o"', '"model":"chat"'),
        ('"mod\\u0065l": "gpt-4o", "\\u00e9": "\\ud83d\\ude00 \\/"', '"model":"chat","é":"\\ud83d\\ude00 \\/"'),
        (
            '"model": "gpt-4o", "big": 123456789012345678901234567890',
            '"model":"chat","big":123456789012345678901234567890',
        ),
    ],
)
def test_only_the_top_level_model_of_a_json_body_changes(fields: str, told: str) -> None:
    after = renamed(call(f"{{{fields}}}".encode()), "chat")
    assert after.body.decode() == f"{{{told}}}"
    assert dict(after.headers)[b"content-length"] == b"%d" % len(after.body)
    assert json.loads(after.body)["model"] == "chat"


def test_a_form_keeps_its_files() -> None:
    of_type = b"multipart/form-data; boundary=x"
    after = renamed(call(FORM % b"gpt-4o", of_type), "chat")
    assert after == call(FORM % b"chat", of_type)


@pytest.mark.parametrize(
    ("query", "told"),
    [
        (b"model=gpt-4o", b"model=chat"),
        (b"a=1&model=org%2Fmodel&b=&c=%FF+%26", b"a=1&model=chat&b=&c=%FF+%26"),
        (b"model=x&model=gpt-4o", b"model=chat&model=chat"),
    ],
)
def test_a_query_is_renamed_and_the_body_left_alone(query: bytes, told: bytes) -> None:
    body = b'{"model": "of the body'
    assert renamed(call(body, query=query), "chat") == call(body, query=told)
