"""A chat as the one text a model was trained to continue, rendered by the model's own Jinja template.

Renders what transformers' `apply_chat_template` renders, without transformers. Templates come with models and are not
trusted: they run in Jinja's sandbox.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, NoReturn

import jinja2
import jinja2.meta
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import LoopContext
from jinja2.sandbox import ImmutableSandboxedEnvironment

from deepinfer.engine_shim.text.content_format import wants_parts
from deepinfer.fleet.errors import EngineWillNotStart, InvalidRequest

Message = Mapping[str, Any]

_OF_LOOPS: Final = frozenset({"first", "last", "index", "index0"})
_MARK: Final = "CONTINUE_FINAL_MESSAGE_TAG "


@dataclass(frozen=True, slots=True)
class ChatPrompt:
    """A chat to render. Content is a text, or a list of text parts. `variables` are the chat_template_kwargs."""

    messages: Sequence[Message]
    tools: Sequence[Mapping[str, Any]] | None = None
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    variables: Mapping[str, Any] | None = None


class ChatTemplate:
    """A compiled template and the special tokens it may name (bos_token, eos_token, …)."""

    def __init__(self, source: str, special_tokens: Mapping[str, str]) -> None:
        environment = _environment()
        try:
            self._template = environment.from_string(source)
        except jinja2.TemplateSyntaxError as error:
            raise EngineWillNotStart(f"The model's chat template is not valid Jinja: {error}.") from error
        self._template.globals = dict(self._template.globals)  # from a ChainMap, which each rendering copies slowly
        self._special_tokens = dict(special_tokens)
        syntax = environment.parse(source)
        self._in_parts = wants_parts(syntax)
        self.variables = frozenset(jinja2.meta.find_undeclared_variables(syntax))

    def render(self, prompt: ChatPrompt) -> str:
        """`InvalidRequest` when the template refuses the messages."""
        messages = [self._shown(message) for message in prompt.messages]
        if prompt.continue_final_message:
            if prompt.add_generation_prompt:
                reason = "continue_final_message and add_generation_prompt exclude each other; set one to false."
                raise InvalidRequest(reason, param="continue_final_message")
            _mark_final(messages)
        given = self._special_tokens | dict(prompt.variables or {})
        chat = {"messages": messages, "tools": prompt.tools, "documents": None}
        try:
            text = self._template.render(**given | chat, add_generation_prompt=prompt.add_generation_prompt)
        except (jinja2.TemplateError, TypeError, KeyError, ValueError) as error:
            raise InvalidRequest(f"The model's chat template refuses this chat: {error}.", param="messages") from error
        return _until_mark(text) if prompt.continue_final_message else text

    def _shown(self, message: Message) -> Message:
        """Its content in the shape that this template wants; what tools said is always a text."""
        content = message.get("content")
        if isinstance(content, str):
            if self._in_parts and message["role"] != "tool":
                return {**message, "content": [{"type": "text", "text": content}]}
        elif isinstance(content, list) and not (self._in_parts and message["role"] != "tool"):
            texts = [part["text"] for part in content]
            return {**message, "content": "\n".join(texts if self._in_parts else filter(None, texts))}
        return message


def _mark_final(messages: list[Message]) -> None:
    content = messages[-1].get("content") if messages else None
    if isinstance(content, list) and content:
        last = content[-1]
        marked: Any = [*content[:-1], {**last, "text": last["text"] + _MARK}]
    elif isinstance(content, str):
        marked = content + _MARK
    else:
        raise InvalidRequest("continue_final_message needs a last message with text.", param="continue_final_message")
    messages[-1] = {**messages[-1], "content": marked}


def _until_mark(text: str) -> str:
    at = text.rfind(_MARK.strip())
    if at < 0:
        raise InvalidRequest("The chat template does not show the last message.", param="continue_final_message")
    spaced = text[at : at + len(_MARK)] == _MARK
    return text[:at] if spaced else text[:at].rstrip()  # the template strips messages, so their end was stripped too


class _Generation(Extension):
    """`{% generation %}` marks what the assistant said, for training; here it changes nothing."""

    tags = {"generation"}  # noqa: RUF012 - Jinja's own declaration

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Sandbox(ImmutableSandboxedEnvironment):
    """Asks nothing of a loop's counters, which templates look at for every message and are safe."""

    def getattr(self, obj: Any, attribute: str) -> Any:
        if type(obj) is LoopContext and attribute in _OF_LOOPS:
            return getattr(obj, attribute)
        return super().getattr(obj, attribute)


def _environment() -> ImmutableSandboxedEnvironment:
    environment = _Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols])
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Jinja's own escapes HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)
