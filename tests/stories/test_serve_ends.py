"""`serve` is told to end while it answers."""

from __future__ import annotations

import signal
import threading
from pathlib import Path

import httpx
from openai import OpenAIError

from tests.fleet import Fleet, eventually


class Stream(threading.Thread):
    """Has begun once it is made; `end` is then "whole", or what it was told."""

    def __init__(self, fleet: Fleet, tokens: int) -> None:
        super().__init__(daemon=True)
        self._fleet = fleet
        self._tokens = tokens
        self._begun = threading.Event()
        self.end = ""
        self.start()
        assert self._begun.wait(20)

    def run(self) -> None:
        create, tokens = self._fleet.openai.completions.create, self._tokens
        try:
            for _ in create(
                model="chat", prompt="hello", max_tokens=tokens, stream=True, extra_body={"ignore_eos": True}
            ):
                self._begun.set()
            self.end = "whole"
        except (OpenAIError, httpx.TransportError) as error:
            self.end = f"{type(error).__name__}: {error}"


def test_its_streams_end_or_are_told_and_a_second_signal_does_not_wait(tmp_path: Path) -> None:
    with Fleet(tmp_path, serve="drain_seconds = 2\ngateways = 2\n").running() as fleet:
        args = {"seconds_per_output_token": 0.05}
        fleet.deploy(name="chat", model="m", engine="sim", device="cpu", engine_args=args)
        fleet.wait_ready("chat")
        assert fleet.serve is not None
        short, long = Stream(fleet, 20), Stream(fleet, 5000)
        fleet.serve.terminate()
        assert fleet.serve.wait(20) == 0
        short.join(5)
        long.join(5)
        assert short.end == "whole"
        assert "told to end" in long.end

        fleet.start_serve()
        fleet.wait_ready("chat")
        long = Stream(fleet, 5000)
        fleet.serve.terminate()
        eventually(lambda: not fleet.is_up("/ready"))
        fleet.serve.terminate()
        assert fleet.serve.wait(20) == -signal.SIGTERM
        eventually(lambda: not [p for p in fleet.processes() if "gateway_process" in " ".join(p.cmdline())], 5)
