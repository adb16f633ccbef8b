"""What the gateway itself answers: JSON, errors in OpenAI's shape, marked as its own, and SSE for who waits."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from agent_manager.gateway.exchange import Exchange
    from agent_manager.gateway.tickets import RefusedError, Whereabouts

SOURCE: Final = "agent-manager"
"""Says that an error is the gateway's and not the engine's."""
EVENT_STREAM: Final = b"text/event-stream"
_JSON: Final = (b"Content-Type", b"application/json")
_TYPES: Final = {400: "invalid_request_error", 401: "authentication_error", 403: "permission_error",
                 404: "not_found_error", 413: "invalid_request_error", 429: "rate_limit_error"}  # fmt: skip


def say(exchange: Exchange, document: object, *, status: int = 200) -> None:
    """Answer with a JSON document."""
    exchange.answer(status, [_JSON], json.dumps(document).encode())


def refuse(exchange: Exchange, error: RefusedError) -> None:
    """Answer with the error; nothing where part of an answer has been sent."""
    if not exchange.began:
        retry_s = error.retry_after_s
        more = [] if retry_s is None else [(b"Retry-After", b"%d" % retry_s)]
        exchange.answer(error.status, [_JSON, *more], error_body(error))


def error_body(error: RefusedError) -> bytes:
    """The error as OpenAI's clients read it."""
    said = {
        "message": error.message,
        "type": _TYPES.get(error.status, "server_error"),
        "code": error.kind,
        "param": None,
        "source": SOURCE,
    }
    return json.dumps({"error": said}).encode()


def error_event(error: RefusedError) -> bytes:
    """The error in a stream whose status has been sent."""
    return b"data: " + error_body(error) + b"\n\n"


def keep_alive(now: Whereabouts) -> bytes:
    """A comment, which clients skip: what happens, the place in the queue, how long it may still take."""
    expected = f", about {now.expected_s:.0f} s" if now.expected_s is not None else ""
    return f": {SOURCE}: {now.doing}, {now.position} before you{expected}\n\n".encode()
