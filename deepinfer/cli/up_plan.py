"""What `up` will run, and what to do once it runs."""

from __future__ import annotations

import json
import shlex
import shutil
import sys
from dataclasses import dataclass

from deepinfer.cli.names import deployment_name
from deepinfer.cli.options import DEFAULT_SERVER
from deepinfer.cli.views import View


@dataclass(frozen=True)
class Plan:
    """What `up` will run."""

    model: str
    spec: View
    host: str
    port: int
    config: str | None
    keyed: bool = False  # API keys are required

    @property
    def deployment(self) -> str:
        return deployment_name(self.model)

    @property
    def url(self) -> str:
        return f"http://[{self.host}]:{self.port}" if ":" in self.host else f"http://{self.host}:{self.port}"


def welcome(plan: Plan, seconds: float) -> str:
    """What to do now. The curl line works as it is pasted."""
    body = {"model": plan.deployment, "messages": [{"role": "user", "content": "What is the capital of France?"}]}
    chat = [_this_command(), "chat", plan.deployment]
    if plan.url != DEFAULT_SERVER:
        chat += ["--server", plan.url]
    headers = "-H 'Content-Type: application/json'"
    if plan.keyed:
        headers += ' -H "Authorization: Bearer $DEEPINFER_API_KEY"'
    curl = f"curl {plan.url}/v1/chat/completions {headers} -d {shlex.quote(json.dumps(body))}"
    return (
        f"{plan.deployment} is ready after {seconds:.1f} s. The OpenAI endpoint is {plan.url}/v1\n\n"
        f"  {curl}\n\n"
        f"  {shlex.join(chat)}\n\n"
        "Ctrl-C ends everything."
    )


def _this_command() -> str:
    """`deepinfer` where the shell finds it, else the path it was called by."""
    return "deepinfer" if shutil.which("deepinfer") else sys.argv[0]
