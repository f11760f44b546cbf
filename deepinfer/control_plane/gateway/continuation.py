"""How a broken stream goes on elsewhere: what is asked of another replica, or why nothing can be. Pure.

Of a stream that has said nothing yet, be it for roles, the request is made once more, whatever it asks for. Else the
answer's text goes back to the engine as tokens behind the prompt's, at /v1/completions: chat templates trim messages,
so /v1/chat/completions cannot be told to go on exactly where a text ends. At temperature 0 the whole is then what the
one answer would have been (white space at its end is made again, for its tokens are not known); with a higher one, any
continuation is.

A field that is not known here to mean the same for a prompt and its half answer as for the prompt is reason enough not
to: penalties count what was generated, grammars begin anew, tools and reasoning are parsed from the start.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from deepinfer.control_plane.gateway.sent_stream import NotExact, Sent

CHAT: Final = "/v1/chat/completions"
COMPLETIONS: Final = "/v1/completions"
CONTINUED_PATHS: Final = frozenset((CHAT, COMPLETIONS))

_PASSED_ON_NAMES: Final = (
    "model temperature top_p top_k min_p repetition_penalty seed stop stop_token_ids include_stop_str_in_output "
    "ignore_eos skip_special_tokens spaces_between_special_tokens logit_bias allowed_token_ids priority user "
    "session_id cache_salt stream_interval"
)
_PASSED_ON: Final = frozenset(_PASSED_ON_NAMES.split())
"""Fields of both endpoints that say nothing of what came before."""
_TEMPLATE: Final = ("chat_template_kwargs", "add_generation_prompt", "continue_final_message", "add_special_tokens")
"""What /tokenize takes to make of messages what the chat endpoint makes of them."""
_OTHERS_NAMES: Final = (
    "messages prompt stream stream_options max_tokens max_completion_tokens min_tokens "  # are made anew
    "metadata parallel_tool_calls prompt_cache_key prompt_cache_retention request_id safety_identifier service_tier "
    "store include_reasoning"
)
_KNOWN: Final = _PASSED_ON.union(_TEMPLATE, _OTHERS_NAMES.split())
_HARMLESS: Final[dict[str, tuple[Any, ...]]] = {
    "n": (1,),
    "best_of": (1,),
    "echo": (False,),
    "suffix": ("",),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "length_penalty": (1,),
    "use_beam_search": (False,),
    "top_logprobs": (0,),
    "bad_words": ([],),
    "tools": ([],),
    "tool_choice": ("none", "auto"),  # without tools
    "functions": ([],),
    "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "documents": ([],),
    "mm_processor_kwargs": ({},),
    "logits_processors": ([],),
    "return_token_ids": (False,),
    "return_tokens_as_token_ids": (False,),
}
"""Values that ask for what is done anyway."""
GENERATED: Final = "generated_tokens"
"""How many of the prompt's last tokens are of an answer: deepinfer's own engines then compute them as they were made,
to the same bits. vLLM passes by what it does not know."""
_COMPLETION_TOKENS: Final = 16  # what /v1/completions makes when nobody says how many


@dataclass(frozen=True)
class Wanted:
    """A request as its client made it: `asked` is its body without nulls, which mean the default."""

    path: str
    asked: Mapping[str, Any]

    @property
    def is_greedy(self) -> bool:
        return self.asked.get("temperature") == 0

    @property
    def is_for_one(self) -> bool:
        """Choice: the end of one is then the end of all."""
        prompt = self.asked.get("prompt", "")
        several = isinstance(prompt, list) and len(prompt) > 1 and not isinstance(prompt[0], int)
        return self.asked.get("n", 1) == 1 and not several

    @property
    def wants_usage(self) -> bool:
        return self._stream_option("include_usage")

    @property
    def wants_usage_always(self) -> bool:
        return self._stream_option("continuous_usage_stats") and self.wants_usage

    def most_tokens(self) -> int | None:
        """None: as many as the model's context holds."""
        if self.path == COMPLETIONS:
            return _number(self.asked.get("max_tokens", _COMPLETION_TOKENS))
        most = self.asked.get("max_completion_tokens", self.asked.get("max_tokens"))
        return None if most is None else _number(most)

    def _stream_option(self, name: str) -> bool:
        options = self.asked.get("stream_options")
        return isinstance(options, dict) and bool(options.get(name))


def wanted(path: str, body: bytes) -> Wanted:
    try:
        asked = msgspec.json.decode(body, type=dict[str, Any])
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise NotExact(f"its request cannot be read ({error})") from error
    return Wanted(path, {name: value for name, value in asked.items() if value is not None})


def check_exact(wanted: Wanted, sent: Sent) -> None:
    """`NotExact` when what follows the text that was sent could be other than it would have been."""
    if sent.other:
        raise NotExact(f"it had begun to send {sent.other}")
    if "\N{REPLACEMENT CHARACTER}" in sent.text:
        raise NotExact("it has sent characters that stand for others")
    for name, value in wanted.asked.items():
        if name == "logprobs" and value is False:
            continue
        if value not in _HARMLESS.get(name, ()) and name not in _KNOWN:
            raise NotExact(f"it was asked for with '{name}'")


def prompt_question(wanted: Wanted) -> dict[str, Any] | list[int]:
    """The body for /tokenize that tells the prompt's tokens; or these themselves."""
    asked = wanted.asked
    if wanted.path == CHAT:
        messages = asked.get("messages")
        if not isinstance(messages, list) or not all(map(_is_text, messages)):
            raise NotExact("its messages hold more than text")
        template = {name: asked[name] for name in _TEMPLATE if name in asked}
        return {"model": asked.get("model"), "messages": messages, **template}
    prompt = asked.get("prompt")
    if isinstance(prompt, list) and len(prompt) == 1 and not isinstance(prompt[0], int):
        prompt = prompt[0]
    if isinstance(prompt, list) and prompt and all(type(token) is int for token in prompt):
        return prompt
    if not isinstance(prompt, str):
        raise NotExact("it was asked for with several prompts")
    special = asked.get("add_special_tokens", True)
    return {"model": asked.get("model"), "prompt": prompt, "add_special_tokens": special}


def left_to_make(wanted: Wanted, prompt_tokens: int, sent_tokens: int, max_model_len: int) -> int:
    """How many tokens may follow."""
    room = max_model_len - prompt_tokens - sent_tokens
    most = wanted.most_tokens()
    return max(0, room if most is None else min(room, most - sent_tokens))


def completion_body(wanted: Wanted, prompt: list[int], sent: list[int], most: int) -> bytes:
    """Asks /v1/completions for the rest."""
    body = {name: value for name, value in wanted.asked.items() if name in _PASSED_ON}
    body |= {"prompt": prompt + sent, "stream": True, "max_tokens": most, GENERATED: len(sent)}
    least = _number(wanted.asked.get("min_tokens", 0)) - len(sent)
    if least > 0:
        body["min_tokens"] = least
    options = {"include_usage": True}
    if wanted.wants_usage_always:
        options["continuous_usage_stats"] = True
    return msgspec.json.encode(body | {"stream_options": options})


def _is_text(message: Any) -> bool:
    content = message.get("content") if isinstance(message, dict) else ()
    if isinstance(content, list):
        return all(isinstance(part, dict) and part.get("type") == "text" for part in content)
    return content is None or isinstance(content, str)


def _number(value: Any) -> int:
    if not isinstance(value, int):
        raise NotExact("its request names a number of tokens that is none")
    return value
