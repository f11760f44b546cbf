"""Fields of OpenAI's and vLLM's requests that this engine cannot honour, and those that change nothing here.

A field that would change the answer is refused by name; leaving it out silently would be a lie. The values listed
beside it are harmless: they ask for what is done anyway.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, Final

from deepinfer.fleet.errors import InvalidRequest

log = logging.getLogger(__name__)

_REFUSED: Final[dict[str, tuple[Any, ...]]] = {
    "response_format": ({"type": "text"},),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "modalities": (["text"], []),
    "audio": (),
    "web_search_options": (),
    "suffix": ("",),
    "prompt_embeds": (),
    "prompt_logprobs": (),
    "use_beam_search": (False,),
    "length_penalty": (1, 1.0),
    "bad_words": ([],),
    "allowed_token_ids": (),
    "logits_processors": ([],),
    "truncate_prompt_tokens": (),
    "structured_outputs": (),
    "guided_json": (),
    "guided_regex": (),
    "guided_choice": (),
    "guided_grammar": (),
    "chat_template": (),  # a template is a program: only the model's own runs
    "documents": ([],),
    "mm_processor_kwargs": ({},),
    "media_io_kwargs": ({},),
    "mm_payload": (),
    "return_mm_kwargs": (False,),
    "moderation": (),
    "echo": (False,),  # of a chat; a completion has it
    "logprob_token_ids": ([],),
    "return_token_ids": (False,),
    "return_tokens_as_token_ids": (False,),
    "return_token_offsets": (False,),
    "return_prompt_text": (False,),
    "include_reasoning": (True,),
    "thinking_token_budget": (),
    "repetition_detection": (),
    "watermarking": (False,),
    "cache_salt": (),  # it would keep callers' caches apart
    "ec_transfer_params": ({},),
    "vllm_xargs": ({},),
}
_NO_EFFECT_NAMES: Final = (
    "metadata parallel_tool_calls prediction priority prompt_cache_key prompt_cache_options prompt_cache_retention "
    "request_id safety_identifier service_tier session_id spaces_between_special_tokens store stream_interval "
    "truncation_side user verbosity"
)
_NO_EFFECT: Final = frozenset(_NO_EFFECT_NAMES.split())


def refuse_unsupported(fields: Mapping[str, Any]) -> None:
    """`InvalidRequest` for the first field that cannot be honoured."""
    for name, value in fields.items():
        if name in _REFUSED and value not in _REFUSED[name]:
            raise InvalidRequest(f"'{name}' is not supported by this engine.", param=name)
        if name not in _REFUSED and name not in _NO_EFFECT:
            log.debug("a request's unknown field %s is ignored", name)
