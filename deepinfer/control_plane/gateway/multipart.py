"""The values of a form's fields, out of a multipart body of which the rest is passed on untouched (files among it)."""

from __future__ import annotations

from collections.abc import Iterator
from email.message import Message
from email.parser import BytesHeaderParser
from typing import NamedTuple

from deepinfer.control_plane.gateway.body_rules import check_url
from deepinfer.fleet.errors import InvalidRequest

_HEADERS_BYTES = 8 << 10  # of one part
_VALUE_BYTES = 1 << 10
_MOST_PARTS = 1000


class Part(NamedTuple):
    """One field: its name, and where it begins and ends, its headers included."""

    name: str
    start: int
    end: int


def is_form(content_type: bytes) -> bool:
    return content_type.lower().startswith(b"multipart/form-data")


def model_in_form(body: bytes, content_type: bytes, domains: frozenset[str]) -> str | None:
    """The last "model" of the form. Raises `InvalidRequest` when the form cannot be read, or says a foreign URL."""
    found = None
    for part in _parts(body, content_type):
        if part.name == "model":
            found = _text(body, part, _VALUE_BYTES)
        elif part.name.removesuffix("[]").endswith("url"):
            check_url(_text(body, part, len(body)), part.name, domains)
    return found


def renamed_in_form(body: bytes, content_type: bytes, name: str) -> bytes:
    """The form with another "model", wherever it has one."""
    pieces: list[bytes] = []
    done = 0
    for part in _parts(body, content_type):
        if part.name == "model":
            value = _value(body, part, _VALUE_BYTES)
            pieces += (body[done : value.start], name.encode())
            done = value.stop
    return b"".join((*pieces, body[done:]))


def _parts(body: bytes, content_type: bytes) -> Iterator[Part]:
    delimiter, count = _delimiter(content_type), 0
    start = body.find(delimiter)
    while start >= 0:
        start += len(delimiter)
        if body.startswith(b"--", start):
            return
        count += 1
        if count > _MOST_PARTS:
            raise InvalidRequest(f"The form has more than {_MOST_PARTS} parts; send fewer.")
        end = body.find(b"\r\n" + delimiter, start)
        yield Part(_name(body, start), start, end)
        start = end + 2 if end >= 0 else -1


def _delimiter(content_type: bytes) -> bytes:
    header = Message()
    header["content-type"] = content_type.decode("latin-1")
    boundary = header.get_boundary()
    if not boundary:
        raise InvalidRequest("The content type multipart/form-data needs a boundary.")
    return b"--" + boundary.encode("latin-1")


def _name(body: bytes, start: int) -> str:
    end = body.find(b"\r\n\r\n", start, start + _HEADERS_BYTES)
    if end < 0 and len(body) > start + _HEADERS_BYTES:  # an engine may read them, and find another model there
        raise InvalidRequest(f"The headers of a part of the form are longer than {_HEADERS_BYTES} bytes.")
    headers = BytesHeaderParser().parsebytes(body[start + 2 : max(end, start + 2)])
    return str(headers.get_param("name", "", header="content-disposition"))


def _value(body: bytes, part: Part, most: int) -> slice:
    start = body.find(b"\r\n\r\n", part.start) + 4
    if part.end < start or part.end - start > most:
        raise InvalidRequest(f"The form's '{part.name}' is cut off or too long.", part.name)
    return slice(start, part.end)


def _text(body: bytes, part: Part, most: int) -> str:
    try:
        return body[_value(body, part, most)].decode()
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"The form's '{part.name}' is not valid UTF-8.", part.name) from error
