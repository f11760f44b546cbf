"""Rows 12, 15 and 42 under streams: each goes on elsewhere, and its client gets the text of one engine that lived.

These streams are the traffic, so no other runs (`standing`).
"""

from __future__ import annotations

import asyncio
import json
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from deepinfer.engine_shim.engines.sim_script import Script
from deepinfer.engine_shim.text.byte_tokenizer import ByteTokenizer
from deepinfer.engine_shim.text.chat_template import ChatPrompt
from deepinfer.engine_shim.token_engine import SamplingParams
from tests import avx2_torch
from tests.faults.fault_fleet import FaultFleet
from tests.faults.private_network import private_network, silenced

STREAMS, TOKENS = 200, 70
NODE = 47112
"""The group of the node that is cut off, with its engine."""
SILENT_SECONDS = 15.0
"""What a client may wait for the next piece."""


class Client:
    """Of one stream, read as it comes; looked at when it is over."""

    def __init__(self, path: str, body: dict[str, Any]) -> None:
        self.path = path
        self.body = body | {"stream": True, "temperature": 0, "stream_options": {"include_usage": True}}
        self.data = b""
        self.pieces = 0
        self.replica = ""
        self.longest_silence = 0.0
        self._more = asyncio.Event()

    async def run(self, http: httpx.AsyncClient) -> None:
        last = time.monotonic()
        asked = {"x-deepinfer-explain": "true"}  # on which replica it runs
        async with http.stream("POST", self.path, json=self.body, headers=asked) as answer:
            self.replica = answer.headers["x-deepinfer-replica"]
            async for piece in answer.aiter_raw():
                self.longest_silence = max(self.longest_silence, time.monotonic() - last)
                self.data, self.pieces, last = self.data + piece, self.pieces + 1, time.monotonic()
                self._more.set()

    @property
    def is_whole(self) -> bool:
        return self.data.endswith(b"[DONE]\n\n")

    async def has(self, pieces: int) -> None:
        """So many, or all."""
        while self.pieces < pieces and not self.is_whole:
            self._more.clear()
            await self._more.wait()

    def told(self) -> tuple[str, str, int, int]:
        """Text, finish reason and usage; one id, one role, nothing after [DONE]."""
        *events, done, nothing = self.data.decode().split("\n\n")
        assert (done, nothing) == ("data: [DONE]", ""), self.data[-600:]
        chunks = [json.loads(event.removeprefix("data: ")) for event in events]
        assert len({(chunk["id"], chunk["created"], chunk["object"], chunk["model"]) for chunk in chunks}) == 1
        choices = [chunk["choices"][0] for chunk in chunks[:-1]]
        deltas = [choice["delta"] if "delta" in choice else {"content": choice["text"]} for choice in choices]
        assert sum("role" in delta for delta in deltas) == self.path.count("chat")
        (finish,) = (choice["finish_reason"] for choice in choices if choice["finish_reason"])
        usage = chunks[-1]["usage"]
        text = "".join(delta.get("content", "") for delta in deltas)
        return text, finish, usage["prompt_tokens"], usage["completion_tokens"]


def clients_and_answers() -> list[tuple[Client, tuple[str, str, int, int]]]:
    """With what the simulated engine says to each."""
    tokenizer = ByteTokenizer()
    script, asked = Script.of(tokenizer), []
    for number in range(STREAMS):
        prompt = f"Tell me tale {number}."
        body: dict[str, Any] = {"model": "chat", "max_tokens": TOKENS, "ignore_eos": True}
        path, fields = "/v1/completions", {"prompt": prompt}
        if number % 2:
            messages = [{"role": "user", "content": prompt}]
            path, fields = "/v1/chat/completions", {"messages": messages}  # type: ignore[dict-item]
            assert tokenizer.chat_template is not None
            prompt = tokenizer.chat_template.render(ChatPrompt(messages))
        ids = tokenizer.encode(prompt, add_special_tokens=True)
        text = tokenizer.decode(script.answer(ids, SamplingParams(TOKENS, ignore_eos=True)))
        asked.append((Client(path, body | fields), (text, "length", len(ids), TOKENS)))
    return asked


async def moved_on(clients: list[Client], pieces: int = 4) -> None:
    """Every stream has gone on since, or is whole."""
    goals = [client.pieces + pieces for client in clients]
    async with asyncio.timeout(SILENT_SECONDS * 2):
        for client, goal in zip(clients, goals, strict=True):
            await client.has(goal)


@pytest.fixture
def network() -> Iterator[None]:
    with private_network():
        yield


@pytest.mark.usefixtures("network")
def test_rows_12_15_and_42_every_client_gets_the_text_of_one_engine_that_lived(tmp_path: Path) -> None:
    with FaultFleet(tmp_path, nodes=2, worker="stall_seconds = 3\n").running() as fleet:
        fleet.start_worker("node-3", group=NODE)
        args = {"seconds_per_output_token": 0.15, "core_process": True, "max_num_seqs": STREAMS}
        fleet.simulate(replicas=3, engine_args=args)
        engines = {replica["node"]: psutil.Process(replica["pid"]) for replica in fleet.replicas("chat")}
        asked = clients_and_answers()
        clients = [client for client, _ in asked]

        async def run() -> None:
            limits = httpx.Limits(max_connections=STREAMS)
            async with (
                httpx.AsyncClient(base_url=fleet.url, timeout=60, limits=limits, trust_env=False) as http,
                asyncio.TaskGroup() as tasks,
            ):
                for client in clients:
                    tasks.create_task(client.run(http))
                await moved_on(clients)
                engines["node-1"].kill()
                await moved_on(clients)
                (core,) = engines["node-2"].children()
                core.send_signal(signal.SIGSTOP)
                await moved_on(clients)
                with silenced(NODE):
                    await moved_on(clients)

        asyncio.run(run())
        log = (tmp_path / fleet.gateways[0].log).read_text()
        went_on = log.count("a stream goes on on another replica")
        silence = max(client.longest_silence for client in clients)
        print(f"rows 12, 15, 42: {went_on} times a stream went on, after {silence:.1f} s at most")
        assert [client.told() for client in clients] == [answer for _, answer in asked]
        assert silence < SILENT_SECONDS
        assert went_on > STREAMS / 2
        fleet.routed_everywhere()


QUESTIONS = [
    "What is the capital of France?",
    "Write one sentence about the sea.",
    "Who wrote Romeo and Juliet?",
    "Why is the sky blue?",
    "What do bees make?",
    "How many days has a week?",
    "What is water made of?",
    "Describe a tree in five words.",
]


REAL: dict[str, dict[str, Any]] = {
    "layer-shard": {"env": avx2_torch.ENV},
    "vllm": {
        "dtype": "float32",  # vLLM computes together what was generated one by one: in bf16 other last bits would show
        "max_model_len": 512,
        "engine_args": {"enforce_eager": True},
        "env": {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"},
    },
}


@pytest.mark.faults
@pytest.mark.timeout(900)
@pytest.mark.usefixtures("vllm_engine")
@pytest.mark.parametrize("engine", REAL)
def test_row_12_a_real_model_s_answers_go_on_as_one_engine_would_have_made_them(tmp_path: Path, engine: str) -> None:
    """Of layer-shard the whole engine is killed; of vLLM its core: then its server tells an error and [DONE]."""
    with FaultFleet(tmp_path).running() as fleet:
        fleet.deploy(model="smollm2", engine=engine, device="cpu", replicas=2, **REAL[engine])
        fleet.wait_ready("smollm2", seconds=400)
        asked: list[tuple[str, dict[str, Any]]] = []
        for question in QUESTIONS:
            asked.append(("/v1/chat/completions", {"messages": [{"role": "user", "content": question}]}))
            asked.append(("/v1/completions", {"prompt": question}))

        async def streams(*, kill: bool) -> list[Client]:
            clients = [Client(path, {"model": "smollm2", "max_tokens": 48, **body}) for path, body in asked]
            async with (
                httpx.AsyncClient(base_url=fleet.url, timeout=120, trust_env=False) as http,
                asyncio.TaskGroup() as tasks,
            ):
                for client in clients:
                    tasks.create_task(client.run(http))
                await moved_on(clients, 9)
                if kill:
                    unfinished = {client.replica for client in clients if not client.is_whole}
                    victim = next(r for r in fleet.replicas("smollm2") if r["id"] in unfinished)
                    shim = psutil.Process(victim["pid"])
                    cores = [p for p in shim.children(recursive=True) if "EngineCore" in "".join(p.cmdline())]
                    (*cores, shim)[0].kill()
                    print(f"row 12: {victim['id']} was killed after {[client.pieces for client in clients]} pieces")
            return clients

        undisturbed = asyncio.run(streams(kill=False))
        pairs = zip(undisturbed, asyncio.run(streams(kill=True)), strict=True)
        changed = [(b.replica, b.body, b.told(), a.told()) for a, b in pairs if a.told() != b.told()]
        assert not changed  # on which replica each began tells whose fault it is
        assert "a stream goes on" in (tmp_path / fleet.gateways[0].log).read_text()
