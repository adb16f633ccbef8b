"""A request as the gateway understands it, and what a request may not look like. Pure.

The parser (llhttp) is strict about lines, lengths and chunks. Refused here is what it lets pass and what an engine
could read differently than we do.
"""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING, Final, TypeAlias

from msgspec import Struct

from agent_manager.gateway.tickets import RefusedError

if TYPE_CHECKING:
    from collections.abc import Iterable

Header: TypeAlias = tuple[bytes, bytes]
"""Name and value; the name in lower case where a client sent it."""

FRAMING: Final = frozenset({b"content-length", b"transfer-encoding"})
"""The headers that say where a body ends."""
LARGEST_LINE_BYTES: Final = 8 << 10
"""Of the first line, and of each header: nginx's default."""
HEADERS: Final = 64
LARGEST_HEAD_BYTES: Final = 32 << 10
"""All lines together: nginx's default."""
LARGEST_BODY_BYTES: Final = 64 << 20
"""A conversation with pictures in it."""

_ONCE: Final = frozenset(
    {
        "authorization",
        "content-encoding",
        "content-length",
        "content-type",
        "expect",
        "host",
        "origin",
        "sec-fetch-site",
        "transfer-encoding",
        "x-api-key",
    }
)
"""What we act on. Of two of a kind, somebody else might act on the other."""


class Request(Struct, kw_only=True):
    """A request. `path` and `query` are as they came, `headers` by name in lower case, `raw` in order, as bytes.

    `old`: its client speaks HTTP/1.0. `body` is there once all of it has come.
    """

    method: str
    path: str
    query: str
    headers: dict[str, str]
    raw: list[Header]
    old: bool = False
    body: bytes = b""

    @property
    def length(self) -> int | None:
        """What the client says of the body's length in bytes; None when it comes in chunks, or there is none."""
        said = self.headers.get("content-length")
        return None if said is None else int(said)


def understood(method: str, target: bytes, version: str, raw: list[Header]) -> Request:
    """The request with that head. Raises RefusedError for what may not look so."""
    _check_size(target, raw)
    if version not in ("1.1", "1.0"):
        raise RefusedError(505, "wrong_http_version", "this gateway speaks HTTP/1.1")
    if not target.isascii() or b"#" in target:
        raise RefusedError(400, "invalid_target", "a target is ASCII without '#'; write what is not as %XX")
    if method == "CONNECT":
        raise RefusedError(405, "method_not_allowed", "this gateway is no proxy to elsewhere")
    headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in raw}
    if len(headers) < len(raw):
        _check_once(raw)
    coding = headers.get("transfer-encoding")
    old = version == "1.0"
    if coding is not None and (old or coding.lower() != "chunked"):
        raise RefusedError(501, "transfer_encoding", "the only transfer encoding is chunked, of HTTP/1.1")
    if "content-encoding" in headers:
        raise RefusedError(415, "encoded_body", "send the body as it is, without Content-Encoding")
    path, _, query = target.decode("ascii").partition("?")
    request = Request(method=method, path=path, query=query, headers=headers, raw=raw, old=old)
    if (request.length or 0) > LARGEST_BODY_BYTES:
        raise body_too_large()
    return request


def head_too_large() -> RefusedError:
    """What a client is told whose head does not end in time."""
    line, head = LARGEST_LINE_BYTES >> 10, LARGEST_HEAD_BYTES >> 10
    text = f"there may be {HEADERS} headers, {line} KiB each and {head} KiB together"
    return RefusedError(431, "headers_too_large", text)


def body_too_large() -> RefusedError:
    """What a client is told whose body is longer than we take."""
    return RefusedError(413, "body_too_large", f"a body may have {LARGEST_BODY_BYTES >> 20} MiB")


def _check_size(target: bytes, raw: list[Header]) -> None:
    whole = len(target) + sum(map(len, chain.from_iterable(raw)))
    if whole > LARGEST_HEAD_BYTES or len(raw) > HEADERS:
        raise head_too_large()
    if whole > LARGEST_LINE_BYTES:  # else no line can be
        longest = max((len(name) + len(value) for name, value in raw), default=0)
        if max(longest, len(target)) > LARGEST_LINE_BYTES:
            raise head_too_large()


def _check_once(raw: Iterable[Header]) -> None:
    seen: set[bytes] = set()
    for name, _ in raw:
        if name in seen and name.decode("latin-1") in _ONCE:
            raise RefusedError(400, "header_twice", f"there may be one {name.decode('latin-1')} only")
        seen.add(name)
