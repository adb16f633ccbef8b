"""A small Hub on loopback: as much of its API as a download uses, real HTTP, faults on demand."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, cast
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

COMMIT = "0123456789abcdef0123456789abcdef01234567"
ENDLESS_BYTES = 1 << 30

ERRORS = {
    "no-repo": (404, "RepoNotFound"),
    "no-revision": (404, "RevisionNotFound"),
    "down": (503, ""),
}
"""Fault to HTTP status and X-Error-Code."""


@dataclass
class LoopbackHub:
    """One repository with `files`, at `COMMIT`. `requests` are the methods and paths asked for so far.

    `fault` is a key of ERRORS; `gated`: files are refused, as the Hub does, and the rest is told. `truncate` names a
    file whose connection breaks half-way, once. `endless` names one of 1 GiB, which comes slowly (`sent_bytes` so
    far). `claimed_bytes` are sizes announced in place of the real ones.
    """

    repo: str
    files: Mapping[str, bytes]
    fault: str | None = None
    gated: bool = False
    truncate: str | None = None
    endless: str | None = None
    sent_bytes: int = 0
    claimed_bytes: Mapping[str, int] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    url: str = ""


class Server(ThreadingHTTPServer):
    """Waits for its threads when it is closed."""

    daemon_threads = False

    def __init__(self, hub: LoopbackHub) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.hub = hub


class Handler(BaseHTTPRequestHandler):
    """Answers one request."""

    @property
    def hub(self) -> LoopbackHub:
        return cast("Server", self.server).hub

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = urlsplit(self.path).path
        self.hub.requests.append(f"{self.command} {path}")
        parts = path.strip("/").split("/")
        if self.hub.fault:
            self.refuse(*ERRORS[self.hub.fault])
        elif "resolve" in parts and self.hub.gated:
            self.refuse(403, "GatedRepo")
        elif "resolve" in parts:
            self.answer_file("/".join(parts[parts.index("resolve") + 2 :]))
        elif "tree" in parts:
            self.answer_json([self.entry(name) for name in self.hub.files])
        elif "/".join(parts[2:4]) == self.hub.repo:
            self.answer_json({"id": self.hub.repo, "sha": COMMIT, "siblings": [], "private": False})
        else:
            self.refuse(404, "RepoNotFound")

    def entry(self, name: str) -> dict[str, object]:
        """A file in the listing of a commit."""
        content = self.hub.files[name]
        size = ENDLESS_BYTES if name == self.hub.endless else len(content)
        blob = hashlib.sha1(content, usedforsecurity=False).hexdigest()
        return {"type": "file", "path": name, "size": size, "oid": blob}

    def refuse(self, status: int, code: str) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def answer_json(self, document: object) -> None:
        body = json.dumps(document).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def answer_file(self, name: str) -> None:
        content = self.hub.files.get(name)
        if content is None:
            self.refuse(404, "EntryNotFound")
            return
        length = ENDLESS_BYTES if name == self.hub.endless else len(content)
        first = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").split("-")[0])
        self.send_response(206 if first else 200)
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("X-Linked-Size", str(self.hub.claimed_bytes.get(name, length)))
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(length - first))
        if first:
            self.send_header("Content-Range", f"bytes {first}-{length - 1}/{length}")
        self.end_headers()
        if self.command == "HEAD":
            return
        if name == self.hub.endless:
            self.answer_slowly(length - first)
        elif name == self.hub.truncate:
            self.hub.truncate = None
            self.wfile.write(content[: len(content) // 2])
            self.close_connection = True
        else:
            self.wfile.write(content[first:])

    def answer_slowly(self, length: int) -> None:
        """Send zeros, some 100 MB/s, for as long as somebody takes them."""
        self.close_connection = True
        with suppress(ConnectionError):
            while length > 0:
                length -= self.wfile.write(bytes(min(length, 1 << 20)))
                self.hub.sent_bytes += 1 << 20
                time.sleep(0.01)


@contextmanager
def serving(hub: LoopbackHub) -> Iterator[LoopbackHub]:
    """Serve `hub` on a free port of 127.0.0.1; `hub.url` says which."""
    server = Server(hub)
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
