"""The chat every gateway is asked, as the bytes of one HTTP request.

A conversation: what a client sends after `TURNS` questions, about 1,000 tokens in 5 KB. Without any it is 400 bytes,
which no chat stays at, and what an agent asks is far longer than either.
"""

from __future__ import annotations

import json

_SYSTEM = (
    "You are a helpful assistant of a travel agency. Answer in one short sentence, in the language of the question. "
    "Say so when you do not know something; never invent names, dates or prices."
)
_QUESTION = "Which city is the capital of France, and how long does the train from Lyon take to get there?"
_ANSWER = (
    "Paris is the capital of France. From Lyon Part-Dieu a direct high-speed train takes about two hours to Paris Gare "
    "de Lyon, and one leaves nearly every half hour, from early in the morning until about nine in the evening; the "
    "slower regional trains change in Dijon and take five hours, and cost less than half of it. Book some weeks ahead "
    "for the best price, take a seat on the upper deck for the view of the Morvan, and be on the platform two minutes "
    "before it leaves, when its doors close. Bicycles travel only where a place was booked with the ticket."
)
_TURN = (("user", _QUESTION), ("assistant", _ANSWER))
TURNS = 6


def chat(model: str, token: str, *, stream: bool, tokens: int, turns: int = TURNS) -> bytes:
    """`token`: the API key it is sent with; "": none."""
    body = {
        "model": model,
        "messages": [
            {"role": "system", "content": _SYSTEM},
            *[{"role": role, "content": said} for _ in range(turns) for role, said in _TURN],
            {"role": "user", "content": _QUESTION},
        ],
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
