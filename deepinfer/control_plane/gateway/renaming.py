"""A call with another model's name in it: engines know the names of their deployment, and of no alias.

Only the name changes. What a JSON body says besides is passed on as it was written.
"""

from __future__ import annotations

from urllib.parse import parse_qsl, urlencode

import msgspec
from msgspec.structs import replace

from deepinfer.control_plane.gateway.asgi import Headers
from deepinfer.control_plane.gateway.body import model_in_query
from deepinfer.control_plane.gateway.multipart import is_form, renamed_in_form
from deepinfer.engine_shim.frames import EngineCall

_fields = msgspec.json.Decoder(dict[str, msgspec.Raw])


def renamed(call: EngineCall, name: str) -> EngineCall:
    """`name` where the client named the model: in the query, in a form, or in a JSON body."""
    if model_in_query(call.query) is not None:
        return replace(call, query=_renamed_in_query(call.query, name))
    content_type = next((value for header, value in call.headers if header == b"content-type"), b"")
    if is_form(content_type):
        body = renamed_in_form(call.body, content_type, name)
    else:
        body = msgspec.json.encode({**_fields.decode(call.body), "model": name})
    return replace(call, body=body, headers=of_length(call.headers, len(body)))


def _renamed_in_query(query: bytes, name: str) -> bytes:
    given = parse_qsl(query.decode(errors="surrogateescape"), keep_blank_values=True, errors="surrogateescape")
    told = [(field, name if field == "model" else value) for field, value in given]
    return urlencode(told, errors="surrogateescape").encode()


def of_length(headers: Headers, length: int) -> Headers:
    """The headers of a body that became another."""
    return tuple((name, b"%d" % length if name == b"content-length" else value) for name, value in headers)
