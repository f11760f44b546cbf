"""Decoding SmolLM2-135M in bf16 through the whole line (gateway, shim, engine), beside transformers' `generate`.

Both run in one call on the same cores, in turn, round by round; what counts is the ratio of each round, ours over
theirs, and its median. Time is the wall time of a whole batch: prefill of 32 tokens and 64 new ones for each request;
ours are that many concurrent streaming HTTP requests.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tokenizers import Tokenizer

from benchmarks.free_port import free_port
from deepinfer.fleet.places import cache_dir

BATCHES = (1, 8, 32)
PROMPT_TOKENS = 32
NEW_TOKENS = 64
ROUNDS = 3
TEXT = Path(__file__).parent.parent / "README.md"


def prompts_of(model_path: Path, count: int) -> list[list[int]]:
    """`count` different prompts of equal length, so that the peer needs no padding."""
    ids = Tokenizer.from_file(str(model_path / "tokenizer.json")).encode(TEXT.read_text()).ids
    while len(ids) < count * PROMPT_TOKENS:
        ids = ids + ids
    return [ids[i * PROMPT_TOKENS : (i + 1) * PROMPT_TOKENS] for i in range(count)]


class Peer:
    """transformers in its own process."""

    def __init__(self, model_path: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.transformers_peer", str(model_path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        print("peer:", self._answer())

    def _answer(self) -> dict[str, object]:
        assert self._process.stdout is not None
        answer: dict[str, object] = json.loads(self._process.stdout.readline())
        return answer

    def seconds(self, prompts: list[list[int]]) -> float:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"prompts": prompts, "new_tokens": NEW_TOKENS}) + "\n")
        self._process.stdin.flush()
        return float(str(self._answer()["seconds"]))

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(30)


async def _stream(port: int, prompt: list[int]) -> int:
    """One streaming completion over a plain socket: a client library's own cost would be measured too."""
    body = json.dumps(
        {
            "model": "smollm2",
            "prompt": prompt,
            "max_tokens": NEW_TOKENS,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
    ).encode()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(
        b"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n"
        b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    )
    answer = await reader.read()
    writer.close()
    tokens = int(answer.rpartition(b'"completion_tokens":')[2].split(b",")[0].split(b"}")[0])
    assert tokens == NEW_TOKENS, answer[-500:]
    return tokens


def ours(port: int, prompts: list[list[int]]) -> float:
    async def batch() -> None:
        await asyncio.gather(*(_stream(port, prompt) for prompt in prompts))

    started = time.perf_counter()
    asyncio.run(batch())
    return time.perf_counter() - started


@contextmanager
def deepinfer_up(port: int, home: Path) -> Iterator[None]:
    """The product as a user starts it, with a data folder of its own."""
    config = home / "deepinfer.toml"
    config.write_text(f"[etcd]\nport = {free_port()}\n[serve]\nport = {port}\n")
    process = subprocess.Popen(
        [sys.executable, "-m", "deepinfer.cli", "up", "-c", str(config)],
        env={**os.environ, "XDG_DATA_HOME": str(home)},
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        assert process.stdout is not None
        for line in process.stdout:
            print("up:", line, end="")
            if "curl" in line:
                break
        else:
            raise SystemExit("deepinfer up did not come up")
        yield
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(60)


def measure(port: int, model_path: Path) -> dict[int, float]:
    """Batch -> median over the rounds of theirs/ours in seconds, which is ours/theirs in tokens a second."""
    peer = Peer(model_path)
    ratios: dict[int, float] = {}
    for batch in BATCHES:
        prompts = prompts_of(model_path, batch)
        ours(port, prompts), peer.seconds(prompts)  # warm both
        rounds = []
        for _ in range(ROUNDS):
            mine, theirs = ours(port, prompts), peer.seconds(prompts)
            rounds.append(theirs / mine)
            rate = batch * NEW_TOKENS
            print(f"batch {batch:2d}: ours {rate / mine:6.1f} tok/s, transformers {rate / theirs:6.1f} tok/s")
        ratios[batch] = statistics.median(rounds)
    peer.close()
    return ratios


def main() -> None:
    port = free_port()
    with tempfile.TemporaryDirectory() as home, deepinfer_up(port, Path(home)):
        ratios = measure(port, cache_dir() / "models" / "smollm2-135m-instruct")
    print("bench-engine " + " ".join(f"ratio_b{batch}={ratio:.2f}" for batch, ratio in ratios.items()))


if __name__ == "__main__":
    main()
