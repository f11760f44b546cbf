"""A chat is rendered exactly as transformers renders it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from deepinfer.engine_shim.text.chat_template import ChatPrompt, ChatTemplate
from deepinfer.engine_shim.text.model_tokenizer import ModelTokenizer
from deepinfer.fleet.errors import EngineWillNotStart, InvalidRequest
from tests.tokenizer_folders import CHATML, byte_level_folder

SMOLLM2 = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA3 = """{{- bos_token }}
{%- if not date_string is defined %}
    {%- if strftime_now is defined %}
        {%- set date_string = strftime_now("%d %b %Y") %}
    {%- endif %}
{%- endif %}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'+ message['content'] | trim + eos_token }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' + date_string }}
{%- endif %}
"""
TOOLS = """{%- if tools %}
    {{- "# Tools\\n" }}
    {%- for tool in tools %}
        {{- tool | tojson }}
        {{- tool | tojson(indent=2) }}
    {%- endfor %}
{%- endif %}
{%- set ns = namespace(last=-1) %}
{%- for message in messages %}
    {%- if message.role == "system" %}{% continue %}{% endif %}
    {%- set ns.last = loop.index0 %}
    {%- if loop.index0 > 5 %}{% break %}{% endif %}
    {% generation %}{{ message.content }}{% endgeneration %}
{%- endfor %}
{{- ns.last }}{% if enable_thinking is defined and enable_thinking is false %}<think></think>{% endif %}
"""
ALTERNATING = (
    "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Roles must alternate') }}{% endif %}{{ m['content'] }}{% endfor %}"
)
TEMPLATES = {"chatml": CHATML, "smollm2": SMOLLM2, "llama3": LLAMA3, "tools": TOOLS}
CHATS: dict[str, list[dict[str, Any]]] = {
    "one": [{"role": "user", "content": "  hi <b> & 'you' \n"}],
    "system": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "日本?"}],
    "turns": [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b "},
        {"role": "user", "content": "c"},
    ],
}
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "x": "ü<>"}}}


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = byte_level_folder(tmp_path_factory.mktemp("chat"))
    return PreTrainedTokenizerFast.from_pretrained(folder, bos_token="<|endoftext|>")


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("chat", CHATS)
@pytest.mark.parametrize(
    "options",
    [{"add_generation_prompt": True}, {"add_generation_prompt": False, "continue_final_message": True}],
    ids=["answer", "continue"],
)
def test_equal_to_transformers(reference: Any, template: str, chat: str, options: dict[str, bool]) -> None:
    ours = ChatTemplate(TEMPLATES[template], {"bos_token": "<|endoftext|>", "eos_token": "<|im_end|>"})
    for tools in (None, [TOOL]):
        for variables in ({}, {"enable_thinking": False}):
            theirs = reference.apply_chat_template(
                CHATS[chat], tools, chat_template=TEMPLATES[template], tokenize=False, **options, **variables
            )
            assert ours.render(ChatPrompt(CHATS[chat], tools, **options, variables=variables)) == theirs


def test_of_a_model_folder(tmp_path: Path) -> None:
    folder = byte_level_folder(tmp_path)
    reference = PreTrainedTokenizerFast.from_pretrained(folder)
    ours = ModelTokenizer(folder)
    assert ours.chat_template is not None
    text = ours.chat_template.render(ChatPrompt(CHATS["turns"]))
    theirs = reference.apply_chat_template(CHATS["turns"], add_generation_prompt=True, return_dict=False)
    assert ours.encode(text, add_special_tokens=False) == theirs


def test_content_is_shown_in_the_shape_that_the_template_goes_through() -> None:
    """As vLLM shows it."""
    said = [{"type": "text", "text": text} for text in ("a", "", "b ")]
    chat: list[dict[str, Any]] = [
        {"role": "user", "content": said},
        {"role": "tool", "content": said},
        {"role": "assistant", "content": "c"},
    ]
    texts = "{% for m in messages %}{{ m.content | tojson }}{% endfor %}"
    assert ChatTemplate(texts, {}).render(ChatPrompt(chat)) == '"a\\nb ""a\\nb ""c"'
    parts = "{% for m in messages %}{% for part in m.content %}{{ part | tojson }}{% endfor %}{% endfor %}"
    three = "".join(json.dumps(part) for part in said)
    letters = '"a""\\n""\\n""b"" "'
    assert ChatTemplate(parts, {}).render(ChatPrompt(chat)) == three + letters + '{"type": "text", "text": "c"}'
    more = ChatPrompt(chat[:1], add_generation_prompt=False, continue_final_message=True)
    assert ChatTemplate(texts.replace("| tojson", "+ '!'"), {}).render(more) == "a\nb "
    shown = "{% for m in messages %}{% for part in m.content %}{{ part.text }};{% endfor %}{% endfor %}"
    assert ChatTemplate(shown, {}).render(more) == "a;;b "


def test_a_file_of_its_own_comes_first(tmp_path: Path) -> None:
    folder = byte_level_folder(tmp_path)
    (folder / "chat_template.jinja").write_text("{{ messages[0].content }}!")
    template = ModelTokenizer(folder).chat_template
    assert template is not None
    assert template.render(ChatPrompt([{"role": "user", "content": "hi"}])) == "hi!"


@pytest.mark.parametrize(
    ("template", "prompt", "words"),
    [
        (ALTERNATING, ChatPrompt([{"role": "assistant", "content": "a"}]), "Roles must alternate"),
        (CHATML, ChatPrompt([{"role": "user"}]), "refuses this chat"),
        (CHATML, ChatPrompt(CHATS["one"], continue_final_message=True), "exclude each other"),
        ("{{ messages.__class__.__mro__ }}", ChatPrompt(CHATS["one"]), "refuses this chat"),
    ],
)
def test_what_cannot_be_rendered_is_the_request_s_fault(template: str, prompt: ChatPrompt, words: str) -> None:
    with pytest.raises(InvalidRequest, match=words):
        ChatTemplate(template, {}).render(prompt)


def test_a_template_that_is_not_jinja_is_the_model_s_fault() -> None:
    with pytest.raises(EngineWillNotStart, match="not valid Jinja"):
        ChatTemplate("{% for %}", {})
