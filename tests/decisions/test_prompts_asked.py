"""What of a request makes its prompt is read as engines read it, or not at all."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jinja2.sandbox import SandboxedEnvironment

from deepinfer.control_plane.gateway.plain_chat import plain_chat
from deepinfer.control_plane.prompts.asked import CHATS, COMPLETIONS, prompt_of
from deepinfer.control_plane.prompts.prompt import Prompt
from deepinfer.engine_shim.kv_chain import token_bytes
from deepinfer.engine_shim.openai_app.chat_request import ChatRequest
from deepinfer.engine_shim.text.chat_template import ChatPrompt
from deepinfer.engine_shim.text.content_format import wants_parts
from deepinfer.engine_shim.text.tool_words import shown_call

HI: dict[str, Any] = {"role": "user", "content": "hi"}
CALL = {"type": "function", "id": "c1", "function": {"name": "f", "arguments": '{"b": 1, "a": [2.0]}'}}
TOOL = {"type": "function", "function": {"parameters": {"z": 1, "a": 2}, "name": "f"}}
LOOP_IN_MACRO = "{% macro f(x) %}{% for c in x %}{% endfor %}{% endmacro %}"
PARTS = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"messages": [{"role": "system", "content": "a"}, HI, {"role": "assistant", "content": "b", "name": "c"}, HI]},
        {"messages": [{"role": "user", "content": PARTS}]},
        {"messages": [HI, {"role": "assistant", "content": None, "tool_calls": [CALL]}]},
        {"messages": [{"role": "tool", "content": "a", "tool_call_id": "b"}]},
        {"tools": [TOOL], "tool_choice": "none"},
        {"add_generation_prompt": False, "continue_final_message": True},
        {"chat_template_kwargs": {"enable_thinking": False}, "temperature": 0.5, "stop": ["a"], "user": "b"},
    ],
    ids=str,
)
def test_a_chat_is_rendered_from_what_our_own_engines_would_render(more: dict[str, Any]) -> None:
    asked = {"model": "chat", "messages": [HI], **more}
    prompt = prompt_of(CHATS, asked)
    assert prompt is not None
    assert prompt.content == ChatRequest.parse(json.dumps(asked).encode()).prompt()


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(["system", "user", "assistant"]), st.text(), st.none() | st.text(min_size=1)),
        min_size=1,
    ),
    st.sampled_from([{}, {"temperature": 0, "stream": True}, {"max_tokens": None, "user": "a"}]),
)
def test_a_plain_chat_has_the_prompt_that_its_fields_have(
    said: list[tuple[str, str, str | None]], more: dict[str, Any]
) -> None:
    messages = [{"role": role, "content": content} | ({"name": name} if name else {}) for role, content, name in said]
    asked = {"model": "chat", "messages": messages, **more}
    chat = plain_chat(json.dumps(asked).encode())
    assert chat is not None
    mine, theirs = prompt_of(CHATS, chat), prompt_of(CHATS, asked)
    assert (mine is None) == (theirs is None)
    if mine is not None and theirs is not None:
        assert isinstance(mine.content, ChatPrompt) and isinstance(theirs.content, ChatPrompt)
        assert mine.content.messages == theirs.content.messages
        assert (mine.size, mine.cache_salt) == (theirs.size, theirs.cache_salt)


def test_completions_have_a_text_or_tokens() -> None:
    assert prompt_of(COMPLETIONS, {"prompt": "a", "echo": True}) == Prompt("a", 1, add_special_tokens=True)
    assert prompt_of(COMPLETIONS, {"prompt": ["ab"], "add_special_tokens": False}) == Prompt("ab", 2)
    tokens = Prompt(token_bytes([1, 70_000]), 0, cache_salt="s")
    assert prompt_of(COMPLETIONS, {"prompt": [1, 70_000], "cache_salt": "s"}) == tokens
    assert prompt_of(COMPLETIONS, {"prompt": [[1, 70_000]], "cache_salt": "s"}) == tokens


@pytest.mark.parametrize(
    "more",
    [
        {"documents": []},
        {"chat_template": "{{ 1 }}"},
        {"chat_template_kwargs": {"tools": []}},
        {"reasoning_effort": "low"},
        {"truncate_prompt_tokens": 5},
        {"kv_transfer_params": {}},
        {"mm_processor_kwargs": {}},
        {"what_comes_next_year": True},
        {"add_generation_prompt": "no"},
        {"cache_salt": 7},
        {"messages": []},
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:a"}}]}]},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "a", "cache_control": {}}]}]},
        {"messages": [{"role": "developer", "content": "a"}]},
        {"messages": [{"role": "user", "content": None}]},
        {"messages": [{"role": "assistant", "content": "a", "reasoning_content": "b"}]},
        {"messages": [{"role": "system", "content": "x-anthropic-billing-header: a\nb"}]},
        {"messages": [{"role": "assistant", "content": "a", "tool_calls": [{"function": {}}]}]},
        {"tools": [{"type": "web_search"}]},
        {"tools": [{"type": "function", "function": {"name": "f", "more": 1}}]},
    ],
    ids=str,
)
def test_what_may_change_a_chat_in_ways_not_known_here_makes_it_unforeseen(more: dict[str, Any]) -> None:
    assert prompt_of(CHATS, {"model": "chat", "messages": [HI]} | more) is None


@pytest.mark.parametrize(
    "more",
    [
        {"prompt": ["a", "b"]},
        {"prompt": [[1], [2]]},
        {"prompt": [-1]},
        {"prompt": [1.0]},
        {"suffix": "b"},
        {"prompt_embeds": "a"},
    ],
    ids=str,
)
def test_so_with_texts(more: dict[str, Any]) -> None:
    assert prompt_of(COMPLETIONS, {"model": "chat", "prompt": "a"} | more) is None


def test_other_endpoints_are_not_foreseen() -> None:
    assert prompt_of("/v1/responses", {"input": "a"}) is None
    assert prompt_of("/v1/embeddings", {"input": "a"}) is None


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["role", "content", "type", "text", "function", "name", "arguments", "tool_calls", "parameters", "id"]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(st.sampled_from(["messages", "tools", "prompt", "chat_template_kwargs", "cache_salt"]), JSON))
def test_nothing_that_is_asked_is_an_error_here(asked: dict[str, Any]) -> None:
    for path in (CHATS, COMPLETIONS, "/v1/messages"):
        prompt_of(path, asked)
        prompt_of(path, asked | {"messages": [HI, asked.get("messages"), {"role": "assistant", **asked}]})
    prompt_of(CHATS, {"messages": [HI | {"content": [asked, asked.get("messages")], "tool_calls": asked.get("tools")}]})


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [('{"a": 1}', {"a": 1}), ("", {}), ("[1]", {}), ("{", {}), ({"a": 1}, {"a": 1}), (None, {})],
)
def test_the_arguments_of_a_call_are_shown_as_an_object(arguments: Any, shown: Any) -> None:
    call = shown_call({"type": "function", "function": {"name": "f", "arguments": arguments}, "id": "c"})
    assert list(call) == ["id", "function", "type"]
    assert list(call["function"].items()) == [("arguments", shown), ("name", "f")]


@pytest.mark.parametrize(
    ("template", "parts"),
    [
        ("{% for m in messages %}{% for c in m.content %}{{ c.text }}{% endfor %}{% endfor %}", True),
        ("{% for m in messages %}{% set content = m['content'] %}{% for c in content %}{% endfor %}{% endfor %}", True),
        (
            "{% set ms = messages[1:] %}{% for m in ms %}{% for c in m['content'] | list %}{% endfor %}{% endfor %}",
            True,
        ),
        (
            LOOP_IN_MACRO + "{% for m in messages %}{{ f(m.content) }}{% endfor %}",
            True,
        ),
        (
            LOOP_IN_MACRO + "{% for m in messages %}{{ f(x=m.content) }}{% endfor %}",
            True,
        ),
        (
            LOOP_IN_MACRO + "{% for m in messages %}{{ f(m.role) }}{% endfor %}",
            False,
        ),
        ("{% for a, b in messages %}{% for c in content %}{% endfor %}{% endfor %}", False),
        ("{% for m in messages %}{{ m.content }}{% for c in m.tool_calls %}{% endfor %}{% endfor %}", False),
    ],
)
def test_a_template_wants_parts_where_vllm_says_so(template: str, parts: bool) -> None:
    assert wants_parts(SandboxedEnvironment().parse(template)) is parts
