"""What chat and text completions have in common: how tokens are chosen, and where an answer ends.

A null means the default, as in OpenAI's API. Fields this engine does not know are let pass, as other servers do; fields
it knows and cannot honour are refused by name, because leaving them out would change the answer (`unsupported.py`).
"""

from __future__ import annotations

from typing import Annotated, Any, Self

import msgspec
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from deepinfer.engine_shim.openai_app.unsupported import refuse_unsupported
from deepinfer.engine_shim.text_generation import TextShape
from deepinfer.engine_shim.token_engine import SamplingParams
from deepinfer.fleet.errors import InvalidRequest

_INT64 = 1 << 63


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


Finite = Field(allow_inf_nan=False)
Penalty = Annotated[float, Field(ge=-2, le=2, allow_inf_nan=False)]
TokenId = Annotated[int, Field(ge=0, lt=1 << 32)]
Stops = Annotated[list[Annotated[str, Field(min_length=1)]], Field(max_length=16), BeforeValidator(_listed)]


class RequestBody(BaseModel):
    """A JSON object; `parse` refuses it in our words."""

    model_config = ConfigDict(frozen=True, strict=True, extra="allow", protected_namespaces=())

    model: str | None = None

    @classmethod
    def parse(cls, body: bytes) -> Self:
        try:
            given = msgspec.json.decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise InvalidRequest(f"The body is not valid JSON: {error}.") from error
        if not isinstance(given, dict):
            raise InvalidRequest("The body must be a JSON object.")
        said = {name: value for name, value in given.items() if value is not None}
        try:
            return cls.model_validate(said)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            param = ".".join(map(str, first["loc"]))
            raise InvalidRequest(f"'{param}': {_reason(first['msg'])}.", param=param) from error


class StreamOptions(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, extra="ignore")

    include_usage: bool = False


class GenerationRequest(RequestBody):
    """The fields of both endpoints. `max_tokens` and what `logprobs` mean differ, so they are not here."""

    n: int = Field(default=1, ge=1, le=128)
    stream: bool = False
    stream_options: StreamOptions = StreamOptions()
    temperature: float = Field(default=1.0, ge=0, le=2, allow_inf_nan=False)
    top_p: float = Field(default=1.0, gt=0, le=1, allow_inf_nan=False)
    top_k: int = Field(default=0, ge=-1, lt=1 << 31)
    min_p: float = Field(default=0.0, ge=0, le=1, allow_inf_nan=False)
    presence_penalty: Penalty = 0.0
    frequency_penalty: Penalty = 0.0
    repetition_penalty: float = Field(default=1.0, gt=0, le=10, allow_inf_nan=False)
    seed: int | None = Field(default=None, ge=-_INT64, lt=_INT64)
    stop: Stops = []
    stop_token_ids: list[TokenId] = []
    include_stop_str_in_output: bool = False
    skip_special_tokens: bool = True
    min_tokens: int = Field(default=0, ge=0)
    ignore_eos: bool = False
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100, allow_inf_nan=False)]] = {}
    kv_transfer_params: dict[str, Any] = {}

    def model_post_init(self, context: Any, /) -> None:
        if self.model_extra:
            refuse_unsupported(self.model_extra)

    def shape(self) -> TextShape:
        return TextShape(tuple(self.stop), self.include_stop_str_in_output, self.skip_special_tokens)

    def sampling(self, max_tokens: int, logprobs: int | None, vocabulary: int) -> SamplingParams:
        """`max_tokens` is what really fits."""
        if self.min_tokens > max_tokens:
            raise InvalidRequest(f"'min_tokens' is more than the {max_tokens} tokens allowed.", param="min_tokens")
        return SamplingParams(
            max_tokens=max_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=max(0, self.top_k),
            min_p=self.min_p,
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            repetition_penalty=self.repetition_penalty,
            seed=self.seed,
            stop_token_ids=tuple(self.stop_token_ids),
            ignore_eos=self.ignore_eos,
            min_tokens=self.min_tokens,
            logprobs=logprobs,
            logit_bias=_bias(self.logit_bias, vocabulary),
        )


def _bias(logit_bias: dict[str, float], vocabulary: int) -> tuple[tuple[int, float], ...]:
    bias = []
    for name, value in logit_bias.items():
        if not (name.isascii() and name.isdigit() and int(name) < vocabulary):
            reason = f"'logit_bias': {name!r} is not a token id of this model (0 to {vocabulary - 1})."
            raise InvalidRequest(reason, param="logit_bias")
        bias.append((int(name), value))
    return tuple(bias)


def _reason(message: str) -> str:
    """Pydantic's words, without its prefix for our own."""
    return message.removeprefix("Value error, ").rstrip(".")
