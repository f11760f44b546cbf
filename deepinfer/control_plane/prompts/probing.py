"""Whether an engine makes the same tokens of prompts as were foreseen: a few are tried before any are believed."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any, Final

import msgspec

from deepinfer.control_plane.gateway.sent_stream import NotExact
from deepinfer.control_plane.gateway.tokens_of import Ask
from deepinfer.control_plane.prompts.asked import CHATS, COMPLETIONS, prompt_of
from deepinfer.control_plane.prompts.reader import UNFORESEEN, PromptReader
from deepinfer.control_plane.prompts.sample import SAMPLE
from deepinfer.engine_shim.client import EngineCall, EngineClient
from deepinfer.engine_shim.kv_chain import token_bytes
from deepinfer.fleet.errors import EngineFailed

_JSON: Final = ((b"content-type", b"application/json"),)
_USER: Final = {
    "role": "user",
    "content": "What is\tthe capital  of France?\n\n  Say it in 2 words, naïvely: don't 日本. ",
}
_SYSTEM: Final = {"role": "system", "content": " Be brief. "}
_ANSWER: Final = {"role": "assistant", "content": "It's Paris, of course!\n- 1,234,567 people\n- and more"}
_CHATS: Final = (
    [_USER],
    [_SYSTEM, _USER],
    [_USER, _ANSWER, _USER],
    [
        _SYSTEM,
        _USER,
        _ANSWER,
        {"role": "user", "content": [{"type": "text", "text": "And\n"}, {"type": "text", "text": " Rome?"}]},
    ],
)
_TOOL: Final = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a place",
        "parameters": {"type": "object", "properties": {"place": {"type": "string"}}, "required": ["place"]},
    },
}
_CALL: Final = {
    "id": "call00001",
    "type": "function",
    "function": {"name": "weather", "arguments": '{"place": "Rome"}'},
}
_WITH_TOOLS: Final = [
    _USER,
    {"role": "assistant", "content": None, "tool_calls": [_CALL]},
    {"role": "tool", "content": "sunny", "tool_call_id": "call00001"},
]


async def mismatch(reader: PromptReader, ask: Ask, model: str) -> str:
    """Why the reader is not to be believed of this engine; "" when all that both had tokens for is the same.

    `EngineFailed` when nothing was found out.
    """
    agreed, refusal = 0, "the model has no chat template that can be foreseen"
    for path, body in _probes(reader):
        prompt = prompt_of(path, body)
        foreseen = UNFORESEEN if prompt is None else await asyncio.to_thread(reader.read, prompt)
        if foreseen == UNFORESEEN:
            continue
        try:
            said = await ask("/tokenize", {"model": model, **body})
        except NotExact as error:  # it refuses a real request likewise
            refusal = str(error)
            continue
        tokens = said.get("tokens")
        if not isinstance(tokens, list) or not all(type(token) is int and token >= 0 for token in tokens):
            return "the engine's /tokenize does not say what tokens it makes"
        if token_bytes(tokens) != foreseen:
            return f"of {_words(body)} the engine makes other tokens than its files say"
        agreed += 1
    return "" if agreed else f"the engine does not say what tokens it makes: {refusal}"


def asking(client: EngineClient) -> Ask:
    """Of an engine directly."""

    async def ask(path: str, body: dict[str, Any]) -> dict[str, Any]:
        answer = await client.call(EngineCall("POST", path, headers=_JSON, body=msgspec.json.encode(body)))
        try:
            if answer.status >= 500 or answer.status == 429:
                raise EngineFailed(f"The engine answered {path} with status {answer.status}.")
            if answer.status != 200:
                raise NotExact(f"it answered {path} with status {answer.status}")
            return msgspec.json.decode(await answer.read(), type=dict[str, Any])
        except msgspec.MsgspecError as error:
            raise NotExact(f"its answer from {path} cannot be read") from error
        finally:
            answer.cancel()

    return ask


def _probes(reader: PromptReader) -> Iterator[tuple[str, dict[str, Any]]]:
    for messages in _CHATS:
        yield CHATS, {"messages": messages}
    if reader.shows_tools:
        yield CHATS, {"messages": [_USER], "tools": [_TOOL]}
        yield CHATS, {"messages": _WITH_TOOLS, "tools": [_TOOL]}
    yield COMPLETIONS, {"prompt": " ".join(SAMPLE[3:10])}
    yield COMPLETIONS, {"prompt": "\n".join(SAMPLE[10:]), "add_special_tokens": False}


def _words(body: dict[str, Any]) -> str:
    if "prompt" in body:
        return f"a text {'without' if 'add_special_tokens' in body else 'with'} special tokens around it"
    roles = ", ".join(message["role"] for message in body["messages"])
    return f"a chat ({roles}){' with tools' if 'tools' in body else ''}"
