"""The chat every gateway is asked, as the bytes of one HTTP request."""

from __future__ import annotations

import json

_SYSTEM = (
    "You are a helpful assistant of a travel agency. Answer in one short sentence, in the language of the question. "
    "Say so when you do not know something; never invent names, dates or prices."
)
_QUESTION = "Which city is the capital of France, and how long does the train from Lyon take to get there?"


def chat(model: str, token: str, *, stream: bool, tokens: int) -> bytes:
    """`token`: the API key it is sent with; "": none."""
    body = {
        "model": model,
        "messages": [{"role": "system", "content": _SYSTEM}, {"role": "user", "content": _QUESTION}],
        "temperature": 0.7,
        "max_tokens": tokens,
        "stream": stream,
    }
    content = json.dumps(body).encode()
    lines = [
        "POST /v1/chat/completions HTTP/1.1",
        "host: 127.0.0.1",
        "user-agent: bench",
        "accept: */*",
        "content-type: application/json",
        *([f"authorization: Bearer {token}"] if token else []),
        f"content-length: {len(content)}",
    ]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + content
