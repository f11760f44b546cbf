"""`chat`: talk to a model in the terminal. The conversation is kept here and sent whole with every question.

Ctrl-C stops an answer (the engine stops too: the connection is closed); what was said so far stays in the conversation.
"""

from __future__ import annotations

import re
import sys
from contextlib import closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deepinfer.cli.failures import CommandError, InvalidInput
from deepinfer.cli.options import DEFAULT_SERVER, Address, connect

if TYPE_CHECKING:
    from deepinfer.cli.server import Server

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # a model must not be able to steer the user's terminal


def chat(
    model: Annotated[str, typer.Argument(help="A deployment's name, or its model.")],
    prompt: Annotated[str | None, typer.Argument(help="One question; without it, a conversation.")] = None,
    *,
    system: Annotated[str | None, typer.Option(metavar="TEXT", help="A system prompt.")] = None,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="The longest answer.")] = None,
    temperature: Annotated[float | None, typer.Option(min=0, help="0 always takes the likeliest token.")] = None,
    server: Address = DEFAULT_SERVER,
) -> None:
    """Chat with a model. Ctrl-C stops an answer, Ctrl-D leaves."""
    given = {"model": model, "max_tokens": max_tokens, "temperature": temperature}
    request = {key: value for key, value in given.items() if value is not None}
    if prompt is None and not sys.stdin.isatty():
        prompt = sys.stdin.read()
    if prompt is not None and not prompt.strip():
        raise InvalidInput("The prompt is empty; write one, or leave it out for a conversation.")
    with connect(server) as api:
        conversation = Conversation(api, request, [{"role": "system", "content": system}] if system else [])
        if prompt is None:
            _converse(conversation)
        else:
            conversation.ask(prompt)


@dataclass
class Conversation:
    """What was said so far."""

    api: Server
    request: dict[str, Any]
    messages: list[dict[str, str]] = field(default_factory=list)

    def ask(self, question: str) -> None:
        """Print the answer as it comes. A question without any answer is forgotten, so that the turns alternate."""
        self.messages.append({"role": "user", "content": question})
        said: list[str] = []
        try:
            with closing(self.api.chat({**self.request, "messages": self.messages})) as deltas:
                for delta in deltas:
                    text = delta.get("content") or ""
                    said.append(text)
                    _write(text)
        finally:
            if any(said):
                self.messages.append({"role": "assistant", "content": "".join(said)})
                _write("\n")
            else:
                self.messages.pop()


def _converse(conversation: Conversation) -> None:
    import readline  # noqa: F401 - gives input() line editing and history

    typer.echo("Ctrl-C stops an answer, Ctrl-D leaves.", err=True)
    while True:
        try:
            question = input(">>> ")
            if question.strip():
                conversation.ask(question)
        except EOFError:
            typer.echo()
            return
        except KeyboardInterrupt:
            typer.echo("\n(stopped; Ctrl-D leaves)", err=True)
        except CommandError as error:
            typer.echo(f"Error: {error}", err=True)


def _write(text: str) -> None:
    sys.stdout.write(_CONTROL.sub("", text) if sys.stdout.isatty() else text)
    sys.stdout.flush()
