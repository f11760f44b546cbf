"""What every endpoint needs: the engine with its tokenizer, and the names its model goes by."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from deepinfer.engine_shim.text.chat_template import ChatPrompt
from deepinfer.engine_shim.text_generation import TextGenerator
from deepinfer.fleet.errors import InvalidRequest, ModelNotServed

_LONG_TEXT: Final = 64 << 10
"""Characters. Tokenizing more than this would hold up the streams of everybody else."""


@dataclass(frozen=True, slots=True)
class Serving:
    generator: TextGenerator
    names: tuple[str, ...]  # the first is the one answers carry

    def check_model(self, name: str | None) -> None:
        if name is not None and name not in self.names:
            raise ModelNotServed(f"The model {name!r} is not served here; this engine serves {', '.join(self.names)}.")

    async def tokens(self, text: str, *, add_special_tokens: bool) -> tuple[int, ...]:
        encode = self.generator.tokenizer.encode
        if len(text) > _LONG_TEXT:
            return tuple(await asyncio.to_thread(encode, text, add_special_tokens=add_special_tokens))
        return tuple(encode(text, add_special_tokens=add_special_tokens))

    async def chat_tokens(self, prompt: ChatPrompt, *, add_special_tokens: bool) -> tuple[int, ...]:
        """Templates write the special tokens themselves, so none are added unless the request wants that."""
        template = self.generator.tokenizer.chat_template
        if template is None:
            raise InvalidRequest("This model has no chat template; use /v1/completions.", param="messages")
        long = sum(len(str(message.get("content"))) for message in prompt.messages) > _LONG_TEXT
        text = await asyncio.to_thread(template.render, prompt) if long else template.render(prompt)
        return await self.tokens(text, add_special_tokens=add_special_tokens)

    def transfer(self, given: Mapping[str, Any], answers: int) -> Mapping[str, Any] | None:
        """`kv_transfer_params`, if there are any. Raises `InvalidRequest`."""
        if not given:
            return None
        if not self.generator.info.transfers_kv:
            raise InvalidRequest("'kv_transfer_params' is not supported by this engine.", param="kv_transfer_params")
        if answers > 1:
            reason = "'kv_transfer_params' are of one answer to one prompt; ask for them one by one."
            raise InvalidRequest(reason, param="kv_transfer_params")
        return given

    def head(self, prefix: str, kind: str) -> dict[str, Any]:
        """The fields every answer begins with."""
        identity = f"{prefix}-{uuid.uuid4().hex}"
        return {"id": identity, "object": kind, "created": int(time.time()), "model": self.names[0]}
