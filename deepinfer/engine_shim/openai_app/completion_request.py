"""The body of POST /v1/completions."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from deepinfer.engine_shim.openai_app.generation_request import GenerationRequest
from deepinfer.fleet.errors import InvalidRequest

Prompt = str | tuple[int, ...]
_MOST_PROMPTS = 1024


class CompletionRequest(GenerationRequest):
    """OpenAI's fields, and vLLM's where it has more. `prompt` is read by `prompts`."""

    prompt: Any = None
    max_tokens: int = Field(default=16, ge=1)
    logprobs: int | None = Field(default=None, ge=0, le=20)
    echo: bool = False
    best_of: int | None = None
    add_special_tokens: bool = True
    generated_tokens: int = Field(default=0, ge=0)  # ours: so many at the prompt's end are of an answer to go on with

    def model_post_init(self, context: Any, /) -> None:
        super().model_post_init(context)
        if self.best_of is not None and self.best_of != self.n:
            raise InvalidRequest("'best_of' is not supported by this engine unless it equals n.", param="best_of")
        if self.echo and self.logprobs is not None:
            raise InvalidRequest("'echo' together with logprobs is not supported by this engine.", param="echo")

    def prompts(self) -> list[Prompt]:
        """One or several, as text or as token ids."""
        given = self.prompt
        if isinstance(given, str) or _is_token_ids(given):
            given = [given]
        if not isinstance(given, list) or not given or not all(isinstance(p, str) or _is_token_ids(p) for p in given):
            reason = "'prompt' must be a text, a list of texts, a list of token ids or a list of such lists."
            raise InvalidRequest(reason, param="prompt")
        if len(given) * self.n > _MOST_PROMPTS:
            raise InvalidRequest(f"'prompt': more than {_MOST_PROMPTS} answers are asked for at once.", param="prompt")
        return [prompt if isinstance(prompt, str) else tuple(prompt) for prompt in given]


def _is_token_ids(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(type(each) is int and each >= 0 for each in value)
