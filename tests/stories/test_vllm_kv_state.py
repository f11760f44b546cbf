"""What a real vLLM holds, as the shim tells it, against what vLLM's own events say to whoever asks for all of them.

How a batch lost on the way is healed is shown over real sockets in `edges/test_kv_subscription.py`.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest
import zmq

from deepinfer.control_plane.prompts.asked import CHATS, prompt_of
from deepinfer.control_plane.prompts.probing import asking, mismatch
from deepinfer.control_plane.prompts.reader import PromptReader
from deepinfer.engine_shim.client import EngineCall, EngineClient
from deepinfer.engine_shim.kv_chain import chain, extra_digest, next_name, token_bytes
from deepinfer.engine_shim.kv_contents import BlockKey, by_group, digest_of
from deepinfer.engine_shim.kv_mirror import KeySet, KvMirror
from deepinfer.engine_shim.kv_residency import resident_tokens
from deepinfer.fleet.launch import EngineLaunch
from tests.fleet import Fleet, eventually

BLOCK = 32
END = b"\xff" * 8

pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module")
def chat(vllm_engine: object, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """SmolLM2 on a vLLM so small that prompts push one another out."""
    with Fleet(tmp_path_factory.mktemp("kv")).running() as fleet:
        fleet.deploy(
            name="chat",
            model="smollm2",
            engine="vllm",
            device="cpu",
            dtype="float32",
            max_model_len=1024,
            engine_args={"enforce_eager": True, "block_size": BLOCK, "num_gpu_blocks_override": 40},
            env={"VLLM_SERVER_DEV_MODE": "1", "VLLM_CPU_KVCACHE_SPACE": "1"},
        )
        fleet.wait_ready("chat", seconds=600)
        yield fleet


def complete(fleet: Fleet, prompt: list[int], salt: str = "") -> None:
    body = {"model": "chat", "prompt": prompt, "max_tokens": 4, "temperature": 0, "ignore_eos": True}
    answer = fleet.http.post("/v1/completions", json=body | ({"cache_salt": salt} if salt else {}), timeout=300)
    assert answer.status_code == 200, answer.text


def random_traffic(fleet: Fleet, requests: int, seed: int) -> None:
    """Shared beginnings, own ends, some salted, six at a time."""
    chance = random.Random(seed)
    asked = []
    for _ in range(requests):
        shared = [chance.randrange(100, 103)] * BLOCK * chance.randrange(1, 6)
        own = [chance.randrange(1000, 2000) for _ in range(chance.randrange(1, 300))]
        asked.append((shared + own, chance.choice(["", "", "", "secret"])))
    with ThreadPoolExecutor(6) as threads:
        list(threads.map(lambda asked: complete(fleet, *asked), asked))


def fresh_subscriber(fleet: Fleet) -> tuple[set[BlockKey], int]:
    """What is held by vLLM's events, all of them from the first on; and how many blocks were ever given up."""
    (launch,) = Path(fleet.home).rglob("launch.json")
    socket = EngineLaunch.model_validate_json(launch.read_bytes()).socket.with_suffix(".kv") / "replay"
    held: set[BlockKey] = set()
    names: dict[int | None, int] = {None: 0}
    given_up = 0
    with zmq.Context() as context, context.socket(zmq.DEALER) as replays:
        replays.set_hwm(0)
        replays.linger = 0
        replays.connect(f"ipc://{socket}")
        replays.send_multipart([b"", bytes(8)])
        while (frames := replays.recv_multipart())[-2] != END:
            for event in msgspec.msgpack.decode(frames[-1])[1]:
                _learn(names, event)
                said = {(event.get("group_idx") or 0, names[said]) for said in event.get("block_hashes", ())}
                match event["type"]:
                    case "BlockStored":
                        held |= said
                    case "BlockRemoved":
                        held -= said
                        given_up += len(said)
                    case _:
                        held = set()
    return held, given_up


def _learn(names: dict[int | None, int], event: dict[str, Any]) -> None:
    parent = names.get(event.get("parent_block_hash"), 0)
    for at, said in enumerate(event.get("block_hashes", ()) if event["type"] == "BlockStored" else ()):
        extra = (event.get("extra_keys") or {at: None})[at]
        tokens = token_bytes(event["token_ids"][at * BLOCK : (at + 1) * BLOCK])
        parent = names[said] = next_name(parent, tokens, extra_digest(extra))


class Copy(KvMirror):
    """As a router sees it."""

    def __init__(self) -> None:
        self.held = KeySet()
        super().__init__(self.held)


def shims_set(fleet: Fleet) -> Copy:
    """The first whole snapshot, its digest checked."""

    async def look() -> Copy:
        client, copy = EngineClient(fleet.wait_ready("chat")[0]["endpoint"]), Copy()
        try:
            async with aclosing(client.watch(kv=True)) as states:  # type: ignore[type-var]
                async for state in states:
                    copy.apply(state)
                    if copy.whole:
                        return copy
        finally:
            await client.close()
        raise AssertionError("the shim ended its watch")

    return asyncio.run(look())


def shims_set_when(fleet: Fleet, condition: Callable[[Copy], bool]) -> Copy:
    """Events come a little after the answers they belong to."""
    return eventually(lambda: [mirror for mirror in [shims_set(fleet)] if condition(mirror)])[0]


def reset_prefix_cache(fleet: Fleet) -> None:
    """Asked of the engine itself: the path names no model to route by."""

    async def ask() -> int:
        client = EngineClient(fleet.wait_ready("chat")[0]["endpoint"])
        try:
            return (await client.call(EngineCall("POST", "/reset_prefix_cache"))).status
        finally:
            await client.close()

    assert asyncio.run(ask()) == 200


def test_the_shim_s_set_is_what_a_fresh_subscriber_computes(chat: Fleet) -> None:
    for seed in range(3):
        random_traffic(chat, 12, seed)
        if seed < 2:
            reset_prefix_cache(chat)
    held, given_up = fresh_subscriber(chat)
    assert given_up > 0, "nothing was ever evicted, so this showed nothing"
    mirror = shims_set_when(chat, lambda mirror: mirror.held == held)
    assert mirror.digest == digest_of(by_group(held))
    assert [(group.block_size, group.tail) for group in mirror.groups] == [(BLOCK, 0)]


def test_a_prompt_just_answered_is_resident_and_a_salted_one_is_another(chat: Fleet) -> None:
    prompt = [7] * BLOCK * 4 + [8]
    complete(chat, prompt)
    complete(chat, prompt, salt="secret")

    tokens = token_bytes(prompt)
    plain, salted = chain(tokens, BLOCK), chain(tokens, BLOCK, extra=extra_digest(["secret"]))
    assert not set(plain) & set(salted)
    mirror = shims_set_when(chat, lambda mirror: mirror.held >= {(0, name) for name in plain + salted})
    assert resident_tokens(plain, BLOCK, mirror.groups, mirror.held) == 4 * BLOCK
    assert resident_tokens(salted, BLOCK, mirror.groups, mirror.held) == 4 * BLOCK


def test_the_blocks_of_a_chat_are_foreseen_from_its_words(chat: Fleet) -> None:
    async def reader() -> PromptReader:
        client = EngineClient(chat.wait_ready("chat")[0]["endpoint"])
        try:
            reader = PromptReader.of(await client.prompt_files((await client.info()).prompt_digest))
            assert await mismatch(reader, asking(client), "chat") == ""
            return reader
        finally:
            await client.close()

    words = "The sea is wide,\n and  it's 3,141 km naïvely 日本 <|im_end|> away. " * 4
    parts = [{"type": "text", "text": "Be brief."}, {"type": "text", "text": words}]
    messages = [{"role": "system", "content": parts}, {"role": "user", "content": words}]
    answered = {"role": "assistant", "content": "It is."}
    prompt = prompt_of(CHATS, {"messages": [*messages, answered, messages[1]]})
    assert prompt is not None
    names = chain(asyncio.run(reader()).read(prompt), BLOCK)
    assert len(names) > 5
    body = {"model": "chat", "messages": [*messages, answered, messages[1]], "max_tokens": 2, "temperature": 0}
    assert chat.http.post("/v1/chat/completions", json=body, timeout=300).status_code == 200
    shims_set_when(chat, lambda mirror: mirror.held >= {(0, name) for name in names})


def test_killing_the_engine_gives_a_new_epoch_and_an_empty_set(chat: Fleet) -> None:
    complete(chat, [9] * BLOCK * 3)
    before = shims_set_when(chat, lambda mirror: len(mirror.held) >= 3)
    replica = chat.wait_ready("chat")[0]
    for process in [psutil.Process(replica["pid"]), *psutil.Process(replica["pid"]).children(recursive=True)]:
        os.kill(process.pid, signal.SIGKILL)
    eventually(lambda: chat.replicas("chat")[0].get("pid") not in (None, replica["pid"]), 120)
    chat.wait_ready("chat", seconds=600)
    after = shims_set(chat)
    assert after.boot_epoch > before.boot_epoch
    assert (len(after.held), after.digest) == (0, 0)
    random_traffic(chat, 6, seed=9)
    held, _ = fresh_subscriber(chat)
    shims_set_when(chat, lambda mirror: mirror.held == held)
