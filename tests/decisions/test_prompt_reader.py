"""A gateway knows the tokens of a prompt as the engine computes them, whatever the template, tokenizer and text."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.models import BPE

from deepinfer.control_plane.prompts.asked import CHATS, COMPLETIONS, prompt_of
from deepinfer.control_plane.prompts.prompt import Prompt
from deepinfer.control_plane.prompts.reader import UNFORESEEN, PromptReader, PromptsUnforeseen
from deepinfer.control_plane.prompts.sample import SAMPLE
from deepinfer.control_plane.prompts.token_cache import TokenCache
from deepinfer.engine_shim.kv_chain import token_bytes
from deepinfer.engine_shim.prompt_files import BYTES, FOLDER, PromptFiles
from deepinfer.engine_shim.text.byte_tokenizer import ByteTokenizer
from deepinfer.engine_shim.text.model_tokenizer import ModelTokenizer
from tests.tokenizer_folders import (
    byte_fallback_folder,
    byte_level_folder,
    left_stripping_folder,
    looking_ahead_folder,
    pieces_folder,
    pretokenized_folder,
    spaced_folder,
    unigram_folder,
    word_piece_folder,
)

TOKENIZERS: dict[str, tuple[Callable[[Path], Path], str]] = {
    "byte-level": (byte_level_folder, "word"),
    "pretokenized": (pretokenized_folder, "word"),
    "byte-fallback": (byte_fallback_folder, "word"),
    **{
        f"pieces-{spaces}": (partial(pieces_folder, spaces=spaces), "word")
        for spaces in ("legacy", "first", "always", "never")
    },
    "eats-spaces": (partial(pieces_folder, spaces="legacy", eats_spaces=True), "word"),
    "unigram": (unigram_folder, "word"),
    "word-piece": (word_piece_folder, "segment"),
    "spaced": (spaced_folder, "segment"),
    "looking-ahead": (looking_ahead_folder, "segment"),
    "left-stripping": (left_stripping_folder, "prompt"),
}
TEMPLATES = {
    "llama2": (
        "{% for m in messages %}{% if m.role == 'user' %}{{ bos_token }}[INST] {{ m.content.strip() }} [/INST]"
        "{% elif m.role == 'assistant' %} {{ m.content }} {{ eos_token }}{% else %}<<SYS>>\n{{ m.content }}\n<</SYS>>"
        "\n\n{% endif %}{% endfor %}"
    ),
    "llama3": (
        "{{ bos_token }}{% set date = strftime_now('%d %b %Y') %}Today Date: {{ date }}\n\n{% for m in messages %}"
        "{{ '<|im_start|>' + m['role'] + '<|im_end|>\n\n' + m['content'] | trim + '<|im_start|>' }}{% endfor %}"
    ),
    "gemma": (
        "{{ bos_token }}{% for m in messages %}<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n"
        "{{ m.content | trim }}<end_of_turn>\n{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n"
        "{% endif %}"
    ),
    "phi": "{% for m in messages %}<|im_start|>\n{{ m.content }}<|im_end|>\n{% endfor %}<|im_start|>  \n",
    "deepseek": (
        "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}<\uff5cUser\uff5c>{{ m.content }}{% else %}"
        "<\uff5cAssistant\uff5c>{{ m.content.split('</think>')[-1] }}{{ eos_token }}{% endif %}{% endfor %}"
        "<\uff5cAssistant\uff5c><think>\n"
    ),
    "qwen": (
        "{% if tools %}<|im_start|>system\n# Tools{% for tool in tools %}\n{{ tool | tojson }}{% endfor %}<|im_end|>\n"
        "{% endif %}"
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}{% for call in m.tool_calls or [] %}"
        "\n<tool_call>\n"
        '{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}\n</tool_call>'
        "{% endfor %}"
        "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n"
        "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
    ),
    "parts": (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{% for part in m.content %}{{ part.text }}|{% endfor %}"
        "<|im_end|>\n{% endfor %}"
    ),
}
SPECIAL = (
    "<s>",
    "</s>",
    "<|im_start|>",
    "<|im_end|>",
    "<|im",
    "<|endoftext|>",
    "<think>",
    "<tool_call>",
    "[SEP]",
    " ü ",
)
LETTERS = st.sampled_from(
    [*"abzAZ09 \t\n\r'.,!?_-<>|\"é漢字🙂\u0301\u200b\u3000\u00a0\u017fİΣ▁Ġ\x00", "  ", " the", "ing", "n't"]
)
TEXTS = st.lists(LETTERS | st.sampled_from(SPECIAL) | st.sampled_from(SAMPLE), max_size=24).map("".join)
SMALLEST = Tokenizer(BPE()).to_str().encode()
TOOL = {"type": "function", "function": {"parameters": {"z": 1.0, "a": {"ü": []}}, "name": "f"}}
CALL = {"type": "function", "id": "c", "function": {"name": "f", "arguments": '{"b": 1.0, "a": [1e5, "ü <|im_end|>"]}'}}


def files_of(folder: Path) -> PromptFiles:
    return PromptFiles(FOLDER, {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()})


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., tuple[PromptReader, ModelTokenizer]]:
    """A reader, and what the engine itself goes by."""
    home = tmp_path_factory.mktemp("models")

    @cache
    def model(name: str, template: str = "") -> tuple[PromptReader, ModelTokenizer]:
        folder = home / f"{name}-{template}"
        if template:
            shutil.copytree(model_folder(name), folder)
            (folder / "chat_template.jinja").write_text(TEMPLATES[template])
        else:
            TOKENIZERS[name][0](folder)
        return PromptReader.of(files_of(folder)), ModelTokenizer(folder)

    def model_folder(name: str) -> Path:
        model(name)
        return home / f"{name}-"

    return model


def engines_tokens(engine: ModelTokenizer | ByteTokenizer, prompt: Prompt) -> bytes:
    text = prompt.content
    if not isinstance(text, str):
        assert engine.chat_template is not None and not isinstance(text, bytes)
        text = engine.chat_template.render(text)
    return token_bytes(engine.encode(text, add_special_tokens=prompt.add_special_tokens))


@pytest.mark.parametrize("tokenizer", TOKENIZERS)
@settings(max_examples=60, deadline=None)
@given(texts=st.lists(TEXTS, min_size=1, max_size=4), special=st.booleans())
def test_of_any_text(models: Any, tokenizer: str, texts: list[str], special: bool) -> None:
    reader, engine = models(tokenizer)
    for text in (texts[0], "".join(texts), " ".join(texts), "".join(texts)):
        prompt = Prompt(text, len(text), add_special_tokens=special)
        assert reader.read(prompt) == engines_tokens(engine, prompt)


@pytest.mark.parametrize("tokenizer", TOKENIZERS)
def test_a_tokenizer_is_cut_where_it_may_be_and_nowhere_else(models: Any, tokenizer: str) -> None:
    reader, _ = models(tokenizer)
    assert (reader.grain, reader.reason == "") == (TOKENIZERS[tokenizer][1], TOKENIZERS[tokenizer][1] == "word"), (
        reader.reason
    )


@pytest.mark.parametrize("template", ["", *TEMPLATES])
@pytest.mark.parametrize("tokenizer", ["pretokenized", "pieces-legacy", "pieces-first", "spaced"])
@settings(max_examples=12, deadline=None)
@given(texts=st.lists(TEXTS, min_size=2, max_size=5), thinking=st.booleans())
def test_of_a_conversation_as_it_grows(
    models: Any, tokenizer: str, template: str, texts: list[str], thinking: bool
) -> None:
    reader, engine = models(tokenizer, template)
    messages: list[dict[str, Any]] = [{"role": "system", "content": "Be brief."}]
    for at, text in enumerate(texts):
        parts = [{"type": "text", "text": text}, {"type": "text", "text": ""}, {"type": "text", "text": "b "}]
        messages.append({"role": ("user", "assistant")[at % 2], "content": parts if at == 2 else text})
        asked = {"messages": messages, "chat_template_kwargs": {"enable_thinking": thinking}}
        prompt = prompt_of(CHATS, asked)
        assert prompt is not None
        assert reader.read(prompt) == engines_tokens(engine, prompt)
    asked["messages"] = [*messages, {"role": "assistant", "content": None, "tool_calls": [CALL]}]
    asked["tools"] = [TOOL]
    prompt = prompt_of(CHATS, asked)
    assert prompt is not None
    assert reader.read(prompt) == engines_tokens(engine, prompt)


@settings(max_examples=40, deadline=None)
@given(text=TEXTS)
def test_of_an_engine_whose_tokens_are_bytes(text: str) -> None:
    reader, engine = PromptReader.of(PromptFiles(BYTES)), ByteTokenizer()
    for path, asked in (
        (COMPLETIONS, {"prompt": text}),
        (CHATS, {"messages": [{"role": "user", "content": text}]}),
    ):
        prompt = prompt_of(path, asked)
        assert prompt is not None
        assert reader.known(prompt) == engines_tokens(engine, prompt)


def test_what_is_known_is_told_at_once_and_what_would_take_long_is_not(models: Any) -> None:
    reader, engine = models("pretokenized")
    words = " ".join(f"{first}{second}{third}" for first in "abcdef" for second in "uvwxyz" for third in "ABCDEF123456")
    turns: list[dict[str, Any]] = [{"role": "user", "content": words[: 60 * at]} for at in range(1, 30)]

    def known(messages: list[dict[str, Any]]) -> bytes | None:
        prompt = prompt_of(CHATS, {"messages": messages})
        assert prompt is not None
        tokens: bytes | None = reader.known(prompt)
        assert tokens is None or tokens == engines_tokens(engine, prompt)
        return tokens

    assert known([{"role": "user", "content": words + words[::-1]}]) is None, "so much new text"
    assert known(turns[:3])
    assert known(turns) is None
    prompt = prompt_of(CHATS, {"messages": turns})
    assert prompt is not None and reader.read(prompt)
    assert known(turns)
    assert known([*turns, {"role": "assistant", "content": "A new one."}])
    assert known(turns * 20) is None, "a long prompt, though all of it is known"


def test_what_ends_a_text_is_no_word_where_more_follows(models: Any) -> None:
    reader, engine = models("unigram")
    for text in ("a word\u3000", "a next", "a word\u3000 next"):
        assert reader.known(Prompt(text, len(text))) == engines_tokens(engine, Prompt(text, len(text)))


def test_a_long_text_that_grows_stays_known(models: Any) -> None:
    reader, engine = models("pretokenized")
    text = " ".join(f"w{number} {number}," for number in range(4000))
    prompt = Prompt(text, len(text), add_special_tokens=True)
    assert reader.known(prompt) is None
    assert reader.read(prompt) == engines_tokens(engine, prompt)
    longer = Prompt(text + " and some more words", len(text) + 20, add_special_tokens=True)
    assert reader.known(longer) == engines_tokens(engine, longer)


@pytest.mark.parametrize(
    "asked",
    [
        {"messages": [{"role": "user", "content": "\ud800"}]},
        {"messages": [{"role": "user", "content": "a"}], "continue_final_message": True},
        {"messages": [{"role": "user", "content": "a"}], "chat_template_kwargs": {"loop": 1, "break": [2]}},
    ],
    ids=str,
)
def test_what_the_engine_will_refuse_is_unforeseen_or_what_it_would_be(models: Any, asked: dict[str, Any]) -> None:
    reader, engine = models("pretokenized")
    prompt = prompt_of(CHATS, asked)
    assert prompt is not None
    tokens = reader.known(prompt)
    assert tokens == UNFORESEEN or tokens == engines_tokens(engine, prompt)


def test_a_template_that_fails_is_no_fault_of_the_reader(tmp_path: Path) -> None:
    folder = byte_level_folder(tmp_path)
    for template in ("{{ 1 // 0 }}", "{{ raise_exception('no') }}", "{{ messages.x.y.z }}", "{{ messages.__class__ }}"):
        (folder / "chat_template.jinja").write_text(template)
        prompt = prompt_of(CHATS, {"messages": [{"role": "user", "content": "a"}]})
        assert prompt is not None
        assert PromptReader.of(files_of(folder)).read(prompt) == UNFORESEEN


@pytest.mark.parametrize(
    ("files", "words"),
    [
        (PromptFiles("voices"), "not known here"),
        (PromptFiles(FOLDER), "not known here"),
        (PromptFiles(FOLDER, {"tokenizer.json": b"{}"}), "not a tokenizer"),
        (PromptFiles(FOLDER, {"tokenizer.json": b"{}", "tokenizer_config.json": b"{"}), "cannot be read"),
        (
            PromptFiles(
                FOLDER, {"tokenizer.json": b"{}", "tokenizer_config.json": b'{"a_token": 1, "chat_template": [1]}'}
            ),
            "not a tokenizer",
        ),
        (PromptFiles(FOLDER, {"tokenizer.json": SMALLEST, "chat_template.jinja": b"\xff"}), "cannot be made sense of"),
        (PromptFiles(FOLDER, {"tokenizer.json": SMALLEST, "chat_template.jinja": b"{% if"}), "not valid Jinja"),
    ],
)
def test_files_that_say_nothing_are_told(files: PromptFiles, words: str) -> None:
    with pytest.raises(PromptsUnforeseen, match=words):
        PromptReader.of(files)


def test_a_prompt_is_never_cut_off(tmp_path: Path) -> None:
    folder = byte_level_folder(tmp_path)
    said = json.loads((folder / "tokenizer.json").read_text())
    said["truncation"] = {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0}
    (folder / "tokenizer.json").write_text(json.dumps(said))
    prompt = Prompt("hello world", 11)
    tokens = PromptReader.of(files_of(folder)).read(prompt)
    assert len(tokens) > 4 * 2
    assert tokens == engines_tokens(ModelTokenizer(folder), prompt)


def test_two_files_that_say_different_things_are_not_believed(tmp_path: Path) -> None:
    folder = byte_level_folder(tmp_path)
    config = (folder / "tokenizer_config.json").read_text()
    stripping = '{"added_tokens_decoder": {"2": {"content": "<|im_end|>", "rstrip": true}},'
    (folder / "tokenizer_config.json").write_text(stripping + config[1:])
    with pytest.raises(PromptsUnforeseen, match="different things"):
        PromptReader.of(files_of(folder))


def test_what_is_remembered_is_bounded_and_what_is_used_stays() -> None:
    tokens = TokenCache(room=100_000)
    for number in range(5_000):
        tokens.put(f"word {number}", bytes(8))
        assert tokens.get("word 0") == bytes(8), "it is asked for all the time"
    assert tokens.get("word 1") is None
    assert len(tokens.young) < 1_000
