"""The body of POST /v1/chat/completions (and of /tokenize, when it has messages)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from pydantic import AliasChoices, Field

from deepinfer.engine_shim.openai_app.generation_request import GenerationRequest
from deepinfer.engine_shim.text.chat_template import ChatPrompt
from deepinfer.engine_shim.text.tool_words import shown_call, shown_tool
from deepinfer.fleet.errors import InvalidRequest

Role = Literal["system", "developer", "user", "assistant", "tool", "function"]


class ChatRequest(GenerationRequest):
    """OpenAI's fields, and vLLM's where it has more."""

    messages: list[dict[str, Any]] = Field(min_length=1)
    max_tokens: int | None = Field(
        default=None, ge=1, validation_alias=AliasChoices("max_completion_tokens", "max_tokens")
    )
    logprobs: bool = False
    top_logprobs: int | None = Field(default=None, ge=0, le=20)
    tools: list[dict[str, Any]] = Field(default_factory=list)
    tool_choice: str | dict[str, Any] = "auto"
    reasoning_effort: str | None = None
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    add_special_tokens: bool = False
    chat_template_kwargs: dict[str, Any] = Field(default_factory=dict)

    def model_post_init(self, context: Any, /) -> None:
        super().model_post_init(context)
        if self.tools and self.tool_choice != "none":
            raise InvalidRequest("'tools' are not supported by this engine; set tool_choice to none.", param="tools")
        if self.tool_choice not in ("auto", "none") and not self.tools:
            raise InvalidRequest("'tool_choice' needs tools, and this engine supports none.", param="tool_choice")
        if self.top_logprobs is not None and not self.logprobs:
            raise InvalidRequest("'top_logprobs' needs logprobs to be true.", param="top_logprobs")

    def wanted_logprobs(self) -> int | None:
        return (self.top_logprobs or 0) if self.logprobs else None

    def prompt(self) -> ChatPrompt:
        effort = {} if self.reasoning_effort is None else {"reasoning_effort": self.reasoning_effort}
        return ChatPrompt(
            messages=[_message(at, message) for at, message in enumerate(self.messages)],
            tools=[shown_tool(tool) for tool in self.tools] or None,
            add_generation_prompt=self.add_generation_prompt,
            continue_final_message=self.continue_final_message,
            variables=effort | self.chat_template_kwargs,
        )


def _message(at: int, message: dict[str, Any]) -> dict[str, Any]:
    """As templates want it: the arguments of tool calls are values."""
    role = message.get("role")
    if role not in Role.__args__:  # type: ignore[attr-defined]
        known = ", ".join(Role.__args__)  # type: ignore[attr-defined]
        raise InvalidRequest(f"'messages.{at}.role' must be one of {known}.", param=f"messages.{at}.role")
    content = _content(at, message.get("content"), optional=role == "assistant")
    calls = {"tool_calls": [shown_call(call) for call in message["tool_calls"]]} if message.get("tool_calls") else {}
    return message | {"content": content} | calls


def _content(at: int, content: Any, *, optional: bool) -> str | list[dict[str, Any]]:
    """An assistant that only called tools said nothing."""
    if isinstance(content, str):
        return content
    if content is None and optional:
        return []
    if isinstance(content, Sequence) and not isinstance(content, bytes) and content:
        return [{"type": "text", "text": _part(at, number, part)} for number, part in enumerate(content)]
    raise InvalidRequest(
        f"'messages.{at}.content' must be a text or a list of text parts.", param=f"messages.{at}.content"
    )


def _part(at: int, number: int, part: Any) -> str:
    if isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str):
        return str(part["text"])
    kind = part.get("type") if isinstance(part, dict) else type(part).__name__
    place = f"messages.{at}.content.{number}"
    raise InvalidRequest(f"'{place}': parts of type {kind!r} are not supported by this engine.", param=place)
