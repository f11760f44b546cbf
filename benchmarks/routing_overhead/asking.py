"""Clients that have conversations with one deployment, and what its answers told."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final

from benchmarks.fleet.until import RunEnded
from benchmarks.routing_overhead.conversations import Conversations, Message

_CLIENTS: Final = 8
_PATIENCE_SECONDS: Final = 60.0


@dataclass(frozen=True)
class Told:
    """Of some answers, all together."""

    requests: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0

    @staticmethod
    def sum(some: Iterable[Told]) -> Told:
        told = list(some)
        return Told(
            sum(each.requests for each in told),
            sum(each.prompt_tokens for each in told),
            sum(each.cached_tokens for each in told),
        )

    @property
    def cached_share(self) -> float:
        return self.cached_tokens / max(1, self.prompt_tokens)


class Client:
    """One connection to the gateway."""

    def __init__(self, port: int, model: str) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_PATIENCE_SECONDS)
        self._model = model

    def ask(self, messages: list[Message], *, explain: bool = False) -> tuple[dict[str, Any], dict[str, Any]]:
        """The answer, and how its replica was chosen if that is asked for."""
        body = {"model": self._model, "messages": messages, "max_tokens": 1, "temperature": 0, "ignore_eos": True}
        headers = {"content-type": "application/json", **({"x-deepinfer-explain": "1"} if explain else {})}
        self._connection.request("POST", "/v1/chat/completions", json.dumps(body), headers)
        answer = self._connection.getresponse()
        content = answer.read()
        if answer.status != 200:
            raise RunEnded(f"{self._model} answered {answer.status}: {content.decode(errors='replace')}")
        return json.loads(content), json.loads(answer.getheader("x-deepinfer-routing") or "{}")

    def converse(self, conversations: Conversations, messages: list[str]) -> Told:
        said, told = conversations.begun(), []
        for message in messages:
            said.append({"role": "user", "content": message})
            answer, _ = self.ask(said)
            usage = answer["usage"]
            cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens", 0)
            told.append(Told(1, usage["prompt_tokens"], cached))
            said.append({"role": "assistant", "content": answer["choices"][0]["message"]["content"] or "-"})
        self._connection.close()
        return Told.sum(told)


def converse(port: int, model: str, conversations: Conversations, count: int) -> Told:
    """`count` conversations, some at a time."""
    all_messages = [conversations.messages() for _ in range(count)]
    with ThreadPoolExecutor(_CLIENTS) as clients:
        one = lambda messages: Client(port, model).converse(conversations, messages)  # noqa: E731
        return Told.sum(clients.map(one, all_messages))
