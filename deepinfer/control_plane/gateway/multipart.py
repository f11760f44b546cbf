"""The value of a form's field, out of a multipart body of which the rest is passed on untouched (files among it)."""

from __future__ import annotations

from collections.abc import Iterator
from email.message import Message
from email.parser import BytesHeaderParser

from deepinfer.fleet.errors import InvalidRequest

_HEADERS_BYTES = 8 << 10  # of one part
_VALUE_BYTES = 1 << 10


def is_form(content_type: bytes) -> bool:
    return content_type.lower().startswith(b"multipart/form-data")


def model_in_form(body: bytes, content_type: bytes) -> str:
    """The last "model" of the form; `InvalidRequest` when there is none, or the form cannot be read."""
    found = None
    for value in _models(body, content_type):
        found = _text(body[value])
    if found is None:
        raise InvalidRequest("The form has no 'model'; GET /v1/models lists what is served.", "model")
    return found


def renamed_in_form(body: bytes, content_type: bytes, name: str) -> bytes:
    """The form with another "model", wherever it has one."""
    pieces: list[bytes] = []
    done = 0
    for value in _models(body, content_type):
        pieces += (body[done : value.start], name.encode())
        done = value.stop
    return b"".join((*pieces, body[done:]))


def _models(body: bytes, content_type: bytes) -> Iterator[slice]:
    """Where the values of the fields "model" are."""
    delimiter = _delimiter(content_type)
    start = body.find(delimiter)
    while start >= 0:
        start += len(delimiter)
        if body.startswith(b"--", start):
            return
        end = body.find(b"\r\n" + delimiter, start)
        if _name(body, start) == "model":
            yield _value(body, start, end)
        start = end + 2 if end >= 0 else -1


def _delimiter(content_type: bytes) -> bytes:
    header = Message()
    header["content-type"] = content_type.decode("latin-1")
    boundary = header.get_boundary()
    if not boundary:
        raise InvalidRequest("The content type multipart/form-data needs a boundary.")
    return b"--" + boundary.encode("latin-1")


def _name(body: bytes, start: int) -> object:
    end = body.find(b"\r\n\r\n", start, start + _HEADERS_BYTES)
    if end < 0 and len(body) > start + _HEADERS_BYTES:  # an engine may read them, and find another model there
        raise InvalidRequest(f"The headers of a part of the form are longer than {_HEADERS_BYTES} bytes.")
    headers = BytesHeaderParser().parsebytes(body[start + 2 : max(end, start + 2)])
    return headers.get_param("name", header="content-disposition")


def _value(body: bytes, start: int, end: int) -> slice:
    start = body.find(b"\r\n\r\n", start) + 4
    if end < start or end - start > _VALUE_BYTES:
        raise InvalidRequest("The form's 'model' is cut off or too long.", "model")
    return slice(start, end)


def _text(value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError as error:
        raise InvalidRequest("The form's 'model' is not valid UTF-8.", "model") from error
