"""What the gateway itself answers: errors in OpenAI's shape, marked as its own, and SSE for who waits."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final

from aiohttp import web

if TYPE_CHECKING:
    from collections.abc import Mapping

    from agent_manager.gateway.tickets import RefusedError, Whereabouts

SOURCE: Final = "agent-manager"
"""Says that an error is the gateway's and not the engine's."""
EVENT_STREAM: Final = "text/event-stream"
_TYPES: Final = {400: "invalid_request_error", 401: "authentication_error", 403: "permission_error",
                 404: "not_found_error", 413: "invalid_request_error", 429: "rate_limit_error"}  # fmt: skip


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


def refusal(error: RefusedError, headers: Mapping[str, str] | None = None) -> web.Response:
    """The error as a response of its own."""
    more = dict(headers or {})
    if error.retry_after_s is not None:
        more["Retry-After"] = str(error.retry_after_s)
    return web.Response(
        status=error.status, body=error_body(error), content_type="application/json", headers=more
    )


def error_event(error: RefusedError) -> bytes:
    """The error in a stream whose status has been sent."""
    return b"data: " + error_body(error) + b"\n\n"


def keep_alive(now: Whereabouts) -> bytes:
    """A comment, which clients skip: what happens, the place in the queue, how long it may still take."""
    expected = f", about {now.expected_s:.0f} s" if now.expected_s is not None else ""
    return f": {SOURCE}: {now.doing}, {now.position} before you{expected}\n\n".encode()
