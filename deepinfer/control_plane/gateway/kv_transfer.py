"""What the two engines of a pair are asked, in the words of vLLM's KV connectors (`kv_transfer_params`). Pure.

The first is asked for one token of the same answer, and tells with it where the prompt's KV lies; the second gets that
beside the request as its client made it. What vLLM's own proxy for its NIXL connector changes is changed here.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec
from msgspec.structs import replace

from deepinfer.control_plane.gateway.continuation import COMPLETIONS, CONTINUED_PATHS
from deepinfer.control_plane.gateway.renaming import of_length
from deepinfer.engine_shim.frames import EngineCall

PARAMS: Final = "kv_transfer_params"
TRANSFERRED_PATHS: Final = CONTINUED_PATHS
_ASKED: Final = {
    "do_remote_decode": True,
    "do_remote_prefill": False,
    "remote_engine_id": None,
    "remote_block_ids": None,
    "remote_host": None,
    "remote_port": None,
}
_LEFT_OUT: Final = ("stream_options", "min_tokens", "min_completion_tokens")
_NOT_FOR_PAIRS: Final[dict[str, tuple[Any, ...]]] = {
    "n": (1,),  # several would fetch what is given away once
    "best_of": (1,),
    "use_beam_search": (False,),
    "echo": (False,),  # needs the prompt's own tokens, or their logprobs, where they are answered
    "prompt_logprobs": (),
    "prompt_embeds": (),
}
"""Fields, and the values of them that ask for nothing a pair cannot do."""
_fields: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])


def prefill_call(call: EngineCall) -> EngineCall | None:
    """For the replica that prefills; None for a request that one replica must answer alone."""
    try:
        fields = _fields.decode(call.body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    if not _is_for_pairs(call.path, fields):
        return None
    body: dict[str, Any] = {name: value for name, value in fields.items() if name not in _LEFT_OUT}
    body |= {PARAMS: _ASKED, "stream": False, "max_tokens": 1}
    if "max_completion_tokens" in fields:
        body["max_completion_tokens"] = 1
    return _with_body(call, body)


def transfer_in(answer: bytes) -> bytes:
    """What the replica that prefilled says of it, as JSON; b"" if it says nothing."""
    try:
        told = _fields.decode(answer).get(PARAMS)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return b""
    given = b"" if told is None else bytes(told)
    return given if given.startswith(b"{") and given != b"{}" else b""


def with_transfer(call: EngineCall, transfer: bytes) -> EngineCall:
    """For the replica that decodes."""
    return _with_body(call, {**_fields.decode(call.body), PARAMS: msgspec.Raw(transfer)})


def _is_for_pairs(path: str, fields: dict[str, msgspec.Raw]) -> bool:
    for name, harmless in _NOT_FOR_PAIRS.items():
        if name in fields and msgspec.json.decode(fields[name]) not in (None, *harmless):
            return False
    return path != COMPLETIONS or _is_one(bytes(fields.get("prompt", b"")))


def _is_one(prompt: bytes) -> bool:
    """A text or a list of token ids, no list of prompts. It may be long, so only its begin is looked at."""
    return not prompt.startswith(b"[") or prompt[1:64].lstrip()[:1].isdigit()


def _with_body(call: EngineCall, fields: dict[str, Any]) -> EngineCall:
    body = msgspec.json.encode(fields)
    return replace(call, body=body, headers=of_length(call.headers, len(body)))
