"""Where the kv policy's cost goes: its steps in this process, over the same prompts, by the CPU time of each.

Calls alone, one after the other: in a gateway each costs somewhat more, since others come between.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import ParamSpec, TypeVar

from benchmarks.routing_overhead.conversations import Conversations
from deepinfer.control_plane.gateway.plain_chat import plain_chat
from deepinfer.control_plane.prompts.asked import CHATS, prompt_of
from deepinfer.control_plane.prompts.prompt import Prompt
from deepinfer.control_plane.prompts.reader import PromptReader
from deepinfer.control_plane.router.candidate import RoutedRequest
from deepinfer.control_plane.router.kv_index import KvIndex
from deepinfer.control_plane.router.outlook import Outlook
from deepinfer.control_plane.router.router import Router
from deepinfer.engine_shim.kv_chain import TOKEN_BYTES, chain
from deepinfer.engine_shim.kv_contents import KvGroup
from deepinfer.engine_shim.prompt_files import FOLDER, PromptFiles
from deepinfer.engine_shim.text.chat_template import ChatPrompt
from deepinfer.engine_shim.token_engine import EngineLoad
from deepinfer.engine_shim.wire import ShimInfo, ShimPhase
from tests.routed_replica import RoutedReplica

P = ParamSpec("P")
T = TypeVar("T")
_SIZE = 16
_BLOCKS = 1 << 17
_FEW, _MANY = 2, 64


class _Clock:
    """Seconds of CPU, by step."""

    def __init__(self) -> None:
        self.spent: Counter[str] = Counter()

    def time(self, step: str, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        began = time.thread_time_ns()
        done = call(*args, **kwargs)
        self.spent[step] += time.thread_time_ns() - began
        return done


def parts(folder: Path, words: list[str], count: int) -> str:
    """A line with the microseconds of each."""
    reader = _reader(folder)
    for seed in range(count):  # so that it knows the words that people use
        for messages in Conversations(words, 1000 + seed).prompts("word"):
            reader.read(Prompt(ChatPrompt(messages), 0))
    few, many = (_clocked(reader, Conversations(words, 1), replicas, count) for replicas in (_FEW, _MANY))
    steps = ", ".join(f"{step} {us:.1f} us" for step, us in few.items())
    return f"of which, alone: {steps}; a choice among {_MANY} instead of {_FEW}: {many['choice']:.1f} us"


def _clocked(reader: PromptReader, conversations: Conversations, replicas: int, count: int) -> dict[str, float]:
    """Microseconds of a request, by step."""
    candidates, router, clock, number = _replicas(replicas), Router(), _Clock(), 0
    for _ in range(count):
        for messages in conversations.prompts("word"):
            number += 1
            body = json.dumps({"model": "chat", "messages": messages, "max_tokens": 1}).encode()
            chat = plain_chat(body)
            assert chat is not None
            prompt = clock.time("prompt", prompt_of, CHATS, chat)
            assert prompt is not None
            tokens = clock.time("tokens", reader.known, prompt) or reader.read(prompt)
            size = len(tokens) // TOKEN_BYTES
            asked = RoutedRequest("chat", id=b"%d" % number, prompt_tokens=size, tokens=tokens, text=body[33:])
            _route(clock, router, candidates, asked, number)
    return {step: spent / 1e3 / number for step, spent in clock.spent.items()}


def _route(clock: _Clock, router: Router, replicas: list[RoutedReplica], asked: RoutedRequest, number: int) -> None:
    now = number / 100
    choice = clock.time("choice", router.choose, replicas, asked, number, now)
    outlook = choice.candidate.outlook
    choice.candidate.last_used = number
    clock.time("books", router.took, choice, 4.0)
    clock.time("books", outlook.went, choice.forecast)
    clock.time("books", outlook.began, choice.forecast, now)
    clock.time("books", outlook.over, choice.forecast, now)
    names = chain(asked.tokens, _SIZE)
    (held,) = outlook.shelf.index.resident(names, _SIZE, [outlook.shelf])
    clock.time("contents", outlook.shelf.put, {0: names[held // _SIZE :]})
    if not number % 16:
        for replica in replicas:
            replica.outlook.told(EngineLoad(prefill_tokens_per_second=1e6), now)


def _reader(folder: Path) -> PromptReader:
    names = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
    return PromptReader.of(PromptFiles(FOLDER, {name: (folder / name).read_bytes() for name in names}))


def _replicas(count: int) -> list[RoutedReplica]:
    index = KvIndex()
    made = [RoutedReplica(f"chat-{number}", Outlook(f"chat-{number}", index.shelf())) for number in range(count)]
    for replica in made:
        outlook = replica.outlook
        outlook.knows(ShimInfo("", 1, ShimPhase.READY, "", "", 1, "sim", (), kv_block_size=_SIZE, kv_blocks=_BLOCKS))
        outlook.shelf.describe((KvGroup(0, _SIZE),), _SIZE)
        outlook.trust.missing = ""
        outlook.told(EngineLoad(prefill_tokens_per_second=1e6), 0.0)
    return made
