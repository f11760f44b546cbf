"""Clients that ask without a pause, and try again for a while where they were told that it went wrong.

The simulated engine's answer is a function of the prompt, so every answer is checked to the last character; and that a
stream ends in one of two ways only: whole, with [DONE], or with an error that says so.
"""

from __future__ import annotations

import json
import random
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import httpx

from deepinfer.engine_shim.engines.sim_script import Script
from deepinfer.engine_shim.text.byte_tokenizer import ByteTokenizer
from deepinfer.engine_shim.token_engine import SamplingParams
from tests.fleet import eventually

TOKENS = 40
DEADLINE_SECONDS = 15.0
"""How long a client tries before it calls its question failed."""
SILENCE_SECONDS = 4.0
"""After which it tries elsewhere."""


class Broken(Exception):
    """The client was told that its answer is not whole: it may ask again."""


class Violation(Exception):
    """An answer that is wrong, or was cut without a word."""


@dataclass
class Tally:
    """What became of the questions."""

    whole: int = 0
    slowest: float = 0.0  # seconds from the first try to the whole answer
    tried_again: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)


class Traffic:
    """Runs while its block does, through each of `urls` in turn."""

    def __init__(self, urls: Sequence[str], model: str, clients: int = 3) -> None:
        self.tally = Tally()
        self._urls = urls
        self._model = model
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(n,), daemon=True) for n in range(clients)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        self.more()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(60)

    def more(self, count: int = 6, seconds: float = 30) -> None:
        """Wait until `count` more answers have come whole."""
        goal = self.tally.whole + count
        eventually(lambda: self.tally.whole >= goal or self.tally.failed or self.tally.violations, seconds)

    def goes_on(self, seconds: float) -> None:
        """For so long."""
        before = self.tally.whole
        self._stop.wait(seconds)
        assert self.tally.whole > before, "no answer came in that time"

    def _run(self, number: int) -> None:
        chance = random.Random(number)
        with httpx.Client(timeout=SILENCE_SECONDS, trust_env=False) as http:
            while not self._stop.is_set():
                self._have_one_answered(http, f"Tell me tale {chance.randrange(1000)}.", number)

    def _have_one_answered(self, http: httpx.Client, prompt: str, turn: int) -> None:
        began = time.monotonic()
        last = ""
        while time.monotonic() < began + DEADLINE_SECONDS:
            url = self._urls[turn % len(self._urls)]
            try:
                check(streamed(http, url, self._model, prompt), prompt)
            except (Broken, httpx.TransportError) as error:
                last = f"{type(error).__name__}: {error}"
                self.tally.tried_again.append(last)
                turn += 1
                self._stop.wait(0.05)
            except Violation as error:
                self.tally.violations.append(str(error))
                return
            else:
                self.tally.whole += 1
                self.tally.slowest = max(self.tally.slowest, time.monotonic() - began)
                return
        self.tally.failed.append(f"no answer within {DEADLINE_SECONDS:g} s; last: {last}")


def streamed(http: httpx.Client, url: str, model: str, prompt: str, tokens: int = TOKENS) -> str:
    """The text of a whole stream. Raises `Broken` for one that says it is not, `Violation` for one that lies."""
    body = {"model": model, "prompt": prompt, "max_tokens": tokens, "stream": True}
    text, finish, done, trouble = "", None, False, ""
    with http.stream("POST", f"{url}/v1/completions", json=body) as answer:
        if answer.status_code != 200:
            raise Broken(f"{answer.status_code} {answer.read().decode()}")
        for line in answer.iter_lines():
            if done and line:
                raise Violation(f"something follows [DONE]: {line}")
            if line == "data: [DONE]":
                done = True
            elif line.startswith("data: "):
                event = json.loads(line.removeprefix("data: "))
                trouble = trouble or event.get("error", {}).get("message", "")
                chunk = _choice(event, model) if not trouble else {}
                text += chunk.get("text", "")
                finish = chunk.get("finish_reason") or finish
    if trouble and done:
        raise Violation(f"an error ({trouble}) and then [DONE]")
    if trouble:
        raise Broken(trouble)
    if not done or finish is None:
        raise Violation(f"a stream was cut without a word after {text!r} (finish reason {finish}, [DONE]: {done})")
    return text


def _choice(event: Any, model: str) -> Any:
    if event["model"] != model:
        raise Violation(f"{event['model']} answered what {model} was asked")
    return event["choices"][0]


def check(text: str, prompt: str, tokens: int = TOKENS) -> None:
    """Raises `Violation` if it is not what the simulated engine says to this prompt."""
    tokenizer = ByteTokenizer()
    ids = tokenizer.encode(prompt, add_special_tokens=True)
    expected = tokenizer.decode(Script.of(tokenizer).answer(ids, SamplingParams(max_tokens=tokens)))
    if text != expected:
        raise Violation(f"to {prompt!r} came {text!r}, not {expected!r}")
