"""From a request to its prompt. What is not known here for sure may change the prompt, and is left alone. Pure.

Names and meanings are vLLM's; what it makes of a chat before the template gets it, is made here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, Final

from deepinfer.control_plane.gateway.plain_chat import PlainChat
from deepinfer.control_plane.prompts.prompt import Prompt
from deepinfer.engine_shim.kv_chain import token_bytes
from deepinfer.engine_shim.text.chat_template import ChatPrompt
from deepinfer.engine_shim.text.tool_words import shown_call, shown_tool

CHATS: Final = "/v1/chat/completions"
COMPLETIONS: Final = "/v1/completions"

_NEITHER_HERE_NOR_THERE: Final = frozenset(
    {
        "allowed_token_ids",
        "bad_words",
        "cache_salt",
        "echo",
        "frequency_penalty",
        "guided_choice",
        "guided_grammar",
        "guided_json",
        "guided_regex",
        "ignore_eos",
        "include_stop_str_in_output",
        "length_penalty",
        "logit_bias",
        "logprobs",
        "max_completion_tokens",
        "max_tokens",
        "metadata",
        "min_p",
        "min_tokens",
        "model",
        "n",
        "presence_penalty",
        "priority",
        "prompt_cache_key",
        "prompt_logprobs",
        "repetition_penalty",
        "request_id",
        "response_format",
        "return_token_ids",
        "return_tokens_as_token_ids",
        "safety_identifier",
        "seed",
        "service_tier",
        "session_id",
        "skip_special_tokens",
        "spaces_between_special_tokens",
        "stop",
        "stop_token_ids",
        "store",
        "stream",
        "stream_options",
        "structured_outputs",
        "temperature",
        "top_k",
        "top_logprobs",
        "top_p",
        "use_beam_search",
        "user",
    }
)
"""Fields that change answers, and no prompt."""
_OF_CHATS: Final = _NEITHER_HERE_NOR_THERE | {
    "add_generation_prompt",
    "add_special_tokens",
    "chat_template_kwargs",
    "continue_final_message",
    "messages",
    "parallel_tool_calls",
    "tool_choice",
    "tools",
}
_OF_COMPLETIONS: Final = _NEITHER_HERE_NOR_THERE | {"add_special_tokens", "prompt", "best_of"}
_NOT_FOR_TEMPLATES: Final = frozenset(
    {
        "add_generation_prompt",
        "chat_template",
        "continue_final_message",
        "conversation",
        "documents",
        "max_length",
        "messages",
        "padding",
        "return_assistant_tokens_mask",
        "return_dict",
        "return_tensors",
        "self",
        "tokenize",
        "tokenizer_kwargs",
        "tools",
        "truncation",
    }
)
"""Arguments of transformers' apply_chat_template, which chat_template_kwargs would change."""
_OF_MESSAGES: Final = frozenset({"role", "content", "name", "tool_calls", "tool_call_id"})
_BILLING: Final = "x-anthropic-billing-header"
"""vLLM takes such a line out of what the system says."""
_TOOL_SIZE: Final = 500


def prompt_of(path: str, asked: PlainChat | Mapping[str, Any]) -> Prompt | None:
    """None: it cannot be foreseen."""
    if isinstance(asked, PlainChat):
        return _of_plain_chat(asked) if path == CHATS else None
    if path == CHATS:
        return _of_chat(asked)
    return _of_completion(asked) if path == COMPLETIONS else None


def _of_plain_chat(asked: PlainChat) -> Prompt | None:
    messages, size = [], 0
    for said in asked.messages:
        role, content = said.role, said.content
        if role not in ("user", "assistant") and (role != "system" or content.startswith(_BILLING)):
            return None
        size += len(content)
        message = {"role": role, "content": content}
        if said.name:
            message["name"] = said.name
        messages.append(message)
    return Prompt(ChatPrompt(messages), size) if messages else None


def _of_chat(asked: Mapping[str, Any]) -> Prompt | None:
    said = {name: value for name, value in asked.items() if value is not None}
    given, tools = said.get("messages"), said.get("tools", [])
    variables = said.get("chat_template_kwargs", {})
    generation = said.get("add_generation_prompt", True)
    continued = said.get("continue_final_message", False)
    special = said.get("add_special_tokens", False)
    if said.keys() - _OF_CHATS or not _are(bool, generation, continued, special) or not isinstance(given, list):
        return None
    if not isinstance(variables, dict) or variables.keys() & _NOT_FOR_TEMPLATES or not _are_tools(tools):
        return None
    messages = [_message(each) for each in given]
    if not messages or not all(messages) or not _is_salt(asked.get("cache_salt")):
        return None
    chat = ChatPrompt(
        messages=[message for message in messages if message],
        tools=[shown_tool(tool) for tool in tools] or None,
        add_generation_prompt=generation,
        continue_final_message=continued,
        variables=variables,
    )
    size = sum(map(_size, given)) + _TOOL_SIZE * len(tools)
    return Prompt(chat, size, special, asked.get("cache_salt"))


def _message(given: Any) -> dict[str, Any] | None:
    """As templates are shown it."""
    if not isinstance(given, dict):
        return None
    if len(given) == 2 and isinstance(given.get("content"), str) and given.get("role") in ("user", "assistant"):
        return given  # as nearly all are
    said = {name: value for name, value in given.items() if value is not None}
    role, content, calls = said.get("role"), said.get("content"), said.get("tool_calls", [])
    extra = {"user": (), "system": (), "assistant": ("tool_calls",), "tool": ("tool_call_id",)}.get(str(role))
    if extra is None or said.keys() - {"role", "content", "name", *extra} or not _are(str, said.get("name", "")):
        return None
    content = [] if content is None and role == "assistant" else content
    if role == "system" and any(text.startswith(_BILLING) for text in _texts(content) or ()):
        return None
    if _texts(content) is None or not _are_calls(calls) or not _are(str, said.get("tool_call_id", "")):
        return None
    shown = {"role": role, "content": content}
    if calls:
        shown["tool_calls"] = [shown_call(call) for call in calls]
    return shown | {name: said[name] for name in ("tool_call_id", "name") if name in said}


def _texts(content: Any) -> Sequence[str] | None:
    """What is said, when it is nothing but text."""
    if isinstance(content, str):
        return (content,)
    if not isinstance(content, list):
        return None
    plain = all(
        isinstance(part, dict)
        and part.keys() == {"type", "text"}
        and part["type"] == "text"
        and _are(str, part["text"])
        for part in content
    )
    return [part["text"] for part in content] if plain else None


def _are_calls(calls: Any) -> bool:
    return isinstance(calls, list) and all(_is_call(call) for call in calls)


def _is_call(call: Any) -> bool:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or call.keys() - {"id", "type", "function"} or call.get("type") != "function":
        return False
    return function.keys() == {"name", "arguments"} and _are(str, call.get("id"), *function.values())


def _are_tools(tools: Any) -> bool:
    return isinstance(tools, list) and all(_is_tool(tool) for tool in tools)


def _is_tool(tool: Any) -> bool:
    function = tool.get("function") if isinstance(tool, dict) else None
    if not isinstance(function, dict) or tool.keys() != {"type", "function"} or tool["type"] != "function":
        return False
    if function.keys() - {"name", "description", "parameters", "strict"} or not isinstance(function.get("name"), str):
        return False
    return isinstance(function.get("parameters", {}), dict) and isinstance(function.get("description", ""), str)


def _size(message: Mapping[str, Any]) -> int:
    content, calls = message.get("content"), message.get("tool_calls")
    said = len(content) if isinstance(content, str) else sum(len(part["text"]) for part in content or ())
    return said + sum(len(call["function"]["arguments"]) for call in calls or ())


def _of_completion(asked: Mapping[str, Any]) -> Prompt | None:
    said = {name: value for name, value in asked.items() if value is not None}
    prompt, special, salt = said.get("prompt"), said.get("add_special_tokens", True), asked.get("cache_salt")
    if said.keys() - _OF_COMPLETIONS or not _are(bool, special) or not _is_salt(salt):
        return None
    if isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], str | list):
        prompt = prompt[0]
    if isinstance(prompt, str):
        return Prompt(prompt, len(prompt), special, salt)
    if isinstance(prompt, list) and prompt:
        with suppress(TypeError, OverflowError):
            return Prompt(token_bytes(prompt), 0, False, salt)
    return None


def _is_salt(salt: Any) -> bool:
    return salt is None or (isinstance(salt, str) and salt != "")


def _are(kind: type, *values: Any) -> bool:
    return all(isinstance(value, kind) for value in values)
