"""Generate on the server in the container: a typed request becomes a streamed completion, its pieces become deltas."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from typing import Any, Final

import httpx
import msgspec

from deepinfer.engine_shim.token_engine import FinishReason, SamplingParams, TokenLogprob
from deepinfer.engine_shim.wire import GenerateDelta, GenerateRequest
from deepinfer.fleet.errors import EngineFailed, InvalidRequest

_TIMEOUT: Final = httpx.Timeout(5.0, read=None)  # a request may wait for its first token as long as others run
_REASONS: Final = {"stop": FinishReason.STOP, "length": FinishReason.LENGTH}
_SAME_NAME: Final = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "seed",
    "ignore_eos",
    "min_tokens",
    "logprobs",
)


class Completions:
    """Called with a request; closing the answer's iterator ends the connection, which aborts it in vLLM."""

    def __init__(self, http: httpx.AsyncClient, model: str) -> None:
        self._http = http
        self._model = model

    async def __call__(self, request: GenerateRequest) -> AsyncGenerator[GenerateDelta, None]:
        """Raises `InvalidRequest` before the first delta, `EngineFailed` at any time."""
        body = {"model": self._model, **body_of(request)}
        try:
            async with self._http.stream("POST", "/v1/completions", json=body, timeout=_TIMEOUT) as response:
                if response.status_code != 200:
                    raise _refusal(response.status_code, await response.aread())
                async for line in response.aiter_lines():
                    if line.startswith("data: {"):
                        yield delta_of(msgspec.json.decode(line.removeprefix("data: ")))
        except httpx.TransportError as error:
            raise EngineFailed(f"The connection to the container's server broke: {error!r}.") from error


def body_of(request: GenerateRequest) -> dict[str, Any]:
    """Of a completion, in vLLM's words beside OpenAI's; the model's name is left out."""
    sampling: SamplingParams = request.sampling
    prompt = request.prompt if isinstance(request.prompt, str) else list(request.prompt)
    return {
        "prompt": prompt,
        "stream": True,
        "max_tokens": sampling.max_tokens or None,  # null: as many as fit
        "stop_token_ids": list(sampling.stop_token_ids),
        "logit_bias": {str(token): bias for token, bias in sampling.logit_bias} or None,
        "return_token_ids": True,
        "return_tokens_as_token_ids": True,  # in logprobs
        **{name: getattr(sampling, name) for name in _SAME_NAME},
    }


def delta_of(event: Mapping[str, Any]) -> GenerateDelta:
    """`EngineFailed` for an event that tells an error."""
    if "error" in event or not event.get("choices"):
        raise EngineFailed(f"The container's server broke the answer off: {_message(event)}")
    choice = event["choices"][0]
    reason = choice.get("finish_reason")
    return GenerateDelta(
        token_ids=tuple(choice.get("token_ids") or ()),
        text=choice.get("text") or "",
        logprobs=_logprobs(choice.get("logprobs") or {}),
        finish_reason=None if reason is None else _REASONS.get(reason, FinishReason.ERROR),
        error="" if reason is None or reason in _REASONS else f"The engine ended the answer: {reason}.",
    )


def _logprobs(said: Mapping[str, Any]) -> tuple[TokenLogprob, ...]:
    """Of one piece. The chosen token stands among the likeliest ones, whether it is one of them or not."""
    tokens, chosen = said.get("tokens") or (), said.get("token_logprobs") or ()
    tops = said.get("top_logprobs") or [{}] * len(tokens)
    return tuple(
        TokenLogprob(_token_id(token), logprob or 0.0, _best_first(top))
        for token, logprob, top in zip(tokens, chosen, tops, strict=True)
    )


def _best_first(top: Mapping[str, float] | None) -> tuple[tuple[int, float], ...]:
    ranked = sorted((top or {}).items(), key=lambda entry: -entry[1])
    return tuple((_token_id(token), logprob) for token, logprob in ranked)


def _token_id(said: str) -> int:
    return int(said.rpartition(":")[2])


def _refusal(status: int, body: bytes) -> EngineFailed | InvalidRequest:
    try:
        message = _message(msgspec.json.decode(body))
    except msgspec.DecodeError:
        message = body[:200].decode(errors="replace")
    if status < 500:
        return InvalidRequest(message)
    return EngineFailed(f"The container's server answered {status}: {message}")


def _message(said: Any) -> str:
    """Of an error in OpenAI's shape."""
    error = said.get("error", said) if isinstance(said, dict) else said
    return str(error.get("message", error) if isinstance(error, dict) else error)
