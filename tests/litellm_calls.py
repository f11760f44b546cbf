"""Run by the Python of litellm's own environment: asks a gateway (argv: its URL, two models), prints what came as JSON.

litellm wants other versions of our dependencies than we do, so it lives with none of them.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

import litellm

SAY_HI = [{"role": "user", "content": "Say hi"}]


def calls(base: str, chat_model: str, embed_model: str) -> dict[str, Any]:
    to = {"api_base": f"{base}/v1", "api_key": "none", "num_retries": 0, "timeout": 60}
    chat = {"messages": SAY_HI, "max_tokens": 6, "temperature": 0, **to}
    hosted = {**to, "api_base": base}
    whole = litellm.completion(f"openai/{chat_model}", **chat)
    embedded = litellm.embedding(f"openai/{embed_model}", input=["sea", "land"], **to)
    ranked = litellm.rerank(f"hosted_vllm/{embed_model}", query="sea", documents=["ship", "ocean"], **hosted)
    return {
        "whole": whole.choices[0].message.content,
        "usage": whole.usage.completion_tokens,
        "hosted_vllm": litellm.completion(f"hosted_vllm/{chat_model}", **chat).choices[0].message.content,
        "streamed": asyncio.run(_streamed(f"openai/{chat_model}", chat)),
        "embedded": [len(each["embedding"]) for each in embedded.data],
        "ranked": sorted(each["index"] for each in ranked.results),
        "unknown": _raised("openai/gpt-9", chat),
        "too long": _raised(f"openai/{chat_model}", {**chat, "messages": [{"role": "user", "content": "sea " * 3000}]}),
    }


async def _streamed(model: str, chat: dict[str, Any]) -> str:
    stream = await litellm.acompletion(model, stream=True, **chat)
    return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])


def _raised(model: str, chat: dict[str, Any]) -> tuple[str, str]:
    try:
        litellm.completion(model, **chat)
    except Exception as error:
        return type(error).__name__, str(error)
    return "", ""


if __name__ == "__main__":
    print(json.dumps(calls(*sys.argv[1:])))
