"""A small Hub on loopback: what a download uses of its API, with ranges, a second host, and faults on demand."""

from __future__ import annotations

import asyncio
import hashlib
import threading
from collections import Counter
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from aiohttp import web

from agent_manager.checkpoints.disk import repo_folder
from agent_manager.checkpoints.fetching.partial import SUFFIX, done_bytes_at

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Mapping
    from pathlib import Path

    Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

COMMIT = "0123456789abcdef0123456789abcdef01234567"
ENDLESS_BYTES = 1 << 30
CHUNK_BYTES = 1 << 16

ERRORS = {
    "no-repo": (404, "RepoNotFound"),
    "no-revision": (404, "RevisionNotFound"),
    "down": (503, ""),
    "bad-token": (401, ""),
}
"""Fault to HTTP status and X-Error-Code."""


@dataclass
class LoopbackHub:
    """One repository with `files`, at `COMMIT`. `requests` are the methods and paths asked for so far.

    Large files (`*.safetensors`) are given out by a second host, as the real one's CDN, at addresses that expire.
    `sent_bytes`: of files, so far, over both hosts; `sent`: the same by name.

    Of everything: `fault` is a key of ERRORS; `token`: who does not show it is refused; `latency_s` before each
    answer. Of files: `gated`: refused, as the Hub does, while the rest is told. `truncate`: its connection breaks
    half-way, once. `endless`: one of 1 GiB, which comes slowly. `claimed_bytes`: listed in place of the real sizes.
    `rate`: bytes per second of a connection. `faults`: for each file, what goes wrong with the next requests for its
    bytes, in turn (see `_spoil`); `always`: with all of them.
    """

    repo: str
    files: Mapping[str, bytes]
    fault: str | None = None
    token: str | None = None
    gated: bool = False
    truncate: str | None = None
    endless: str | None = None
    latency_s: float = 0
    rate: int | None = None
    claimed_bytes: Mapping[str, int] = field(default_factory=dict)
    faults: dict[str, list[str]] = field(default_factory=dict)
    always: dict[str, str] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    sent: Counter[str] = field(default_factory=Counter)
    strangers_were_told: list[str] = field(default_factory=list)
    """Tokens that came to the second host."""
    url: str = ""
    cdn: str = ""
    over: asyncio.Event = field(default_factory=asyncio.Event)
    """Nobody is served any more."""

    @property
    def sent_bytes(self) -> int:
        return sum(self.sent.values())

    def kept_bytes(self, cache: Path) -> int:
        """How much of its files is on disk: not what was sent and is on its way."""
        sizes = {len(content) for content in self.files.values()}
        return sum(
            max(done_bytes_at(blob, size) for size in sizes)
            if blob.name.endswith(SUFFIX)
            else blob.stat().st_size
            for blob in repo_folder(self.repo, cache).glob("blobs/*")
        )

    def fetched(self) -> list[str]:
        """The files whose bytes were asked of the Hub."""
        asked = (request for request in self.requests if request.startswith("GET") and "/resolve/" in request)
        return [request.rpartition("/")[2] for request in asked]

    # What is told ------------------------------------------------------------------------------------------

    @web.middleware
    async def watched(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        self.requests.append(f"{request.method} {request.path}")
        await asyncio.sleep(self.latency_s)
        if self.fault:
            return refused(*ERRORS[self.fault])
        if self.token and request.headers.get("Authorization") != f"Bearer {self.token}":
            return refused(401, "", "Invalid credentials in Authorization header")
        return await handler(request)

    async def model(self, request: web.Request) -> web.StreamResponse:
        if request.match_info["repo"] != self.repo:
            return refused(404, "RepoNotFound")
        return web.json_response({"id": self.repo, "sha": COMMIT, "siblings": [], "private": False})

    async def tree(self, request: web.Request) -> web.StreamResponse:
        if request.match_info["repo"] != self.repo:
            return refused(404, "RepoNotFound")
        return web.json_response([self.entry(name) for name in self.files])

    def entry(self, name: str) -> dict[str, object]:
        """A file in the listing of a commit."""
        size = self.claimed_bytes.get(name, self.size(name))
        entry: dict[str, object] = {
            "type": "file",
            "path": name,
            "size": size,
            "oid": git_hash(self.files[name]),
        }
        if large(name):
            oid = hashlib.sha256(self.files[name]).hexdigest()
            entry["lfs"] = {"oid": oid, "size": size, "pointerSize": 134}
        return entry

    def size(self, name: str) -> int:
        return ENDLESS_BYTES if name == self.endless else len(self.files[name])

    # What is given out -------------------------------------------------------------------------------------

    async def resolve(self, request: web.Request) -> web.StreamResponse:
        name = request.match_info["name"]
        if self.gated:
            return refused(403, "GatedRepo")
        if name not in self.files:
            return refused(404, "EntryNotFound")
        entry = self.entry(name)
        lfs = entry.get("lfs")
        headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{entry["oid"]}"', "Accept-Ranges": "bytes"}
        if isinstance(lfs, dict):
            headers |= {"X-Linked-Etag": f'"{lfs["oid"]}"', "X-Linked-Size": str(entry["size"])}
            return web.Response(
                status=302, headers={**headers, "Location": f"{self.cdn}/{name}?sign=a%2Fb%2Bc"}
            )
        return await self.give(request, name, headers)

    async def stored(self, request: web.Request) -> web.StreamResponse:
        """The second host."""
        await asyncio.sleep(self.latency_s)
        self.requests.append(f"{request.method} cdn/{request.path.lstrip('/')}")
        if token := request.headers.get("Authorization"):
            self.strangers_were_told.append(token)
        if request.raw_path.partition("?")[2] != "sign=a%2Fb%2Bc":
            return web.Response(status=403, text="the signature is wrong")
        return await self.give(request, request.match_info["name"], {"Accept-Ranges": "bytes"})

    async def give(self, request: web.Request, name: str, headers: dict[str, str]) -> web.StreamResponse:
        queue = self.faults.get(name)
        fault = queue.pop(0) if queue and request.method == "GET" else self.always.get(name, "")
        if refusal := spoilt(fault):
            return refusal
        size = self.size(name)
        first, last = span_of(request, size)
        if fault == "ignores-ranges" or "Range" not in request.headers:
            first, last, status = 0, size - 1, 200
        else:
            status, headers["Content-Range"] = 206, f"bytes {first}-{last}/{size}"
        if first > last and size:
            return web.Response(status=416)
        response = web.StreamResponse(status=status, headers=headers)
        response.content_length = last - first + 1
        await response.prepare(request)
        if request.method == "GET":
            with suppress(ConnectionError):
                await self.send(request, response, name, fault, range(first, last + 1))
        return response

    async def send(
        self, request: web.Request, response: web.StreamResponse, name: str, fault: str, span: range
    ) -> None:
        half = span.start + len(span) // 2
        breaks = fault in {"resets", "stalls"}
        if name == self.truncate:
            self.truncate, breaks = None, True
        content = memoryview(self.files[name])
        for start in range(span.start, span.stop, CHUNK_BYTES):
            stop = min(start + CHUNK_BYTES, span.stop)
            if breaks and stop > half:
                if fault == "stalls":
                    await self.over.wait()
                if request.transport is not None:
                    request.transport.abort()
                return
            data = bytes(stop - start) if name == self.endless else bytes(content[start:stop])
            if fault == "corrupts":
                data = bytes([data[0] ^ 1]) + data[1:]
            await response.write(data)
            self.sent[name] += len(data)
            if name == self.endless:
                await asyncio.sleep(0.001)
            elif self.rate:
                await asyncio.sleep(len(data) / self.rate)

    def applications(self) -> tuple[web.Application, web.Application]:
        hub = web.Application(middlewares=[self.watched])
        repo = r"{repo:[^/]+/[^/]+}"
        hub.router.add_get(f"/api/models/{repo}", self.model)
        hub.router.add_get(f"/api/models/{repo}/revision/{{revision}}", self.model)
        hub.router.add_get(f"/api/models/{repo}/tree/{{revision}}", self.tree)
        hub.router.add_get(f"/{repo}/resolve/{{revision}}/{{name:.+}}", self.resolve)
        cdn = web.Application()
        cdn.router.add_get("/{name:.+}", self.stored)
        return hub, cdn


def spoilt(fault: str) -> web.Response | None:
    """`503`, `429:2` (with Retry-After), `expired` (the signed address), `gone` (404)."""
    status, _, asked = fault.partition(":")
    if fault == "expired":
        return web.Response(status=403, text="the address has expired")
    if status.isdigit():
        return web.Response(status=int(status), headers={"Retry-After": asked} if asked else {})
    return None


def refused(status: int, code: str, message: str = "") -> web.Response:
    return web.Response(status=status, headers={"X-Error-Code": code, "X-Error-Message": message})


def large(name: str) -> bool:
    return name.endswith(".safetensors")


def git_hash(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def span_of(request: web.Request, size: int) -> tuple[int, int]:
    first, _, last = request.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")
    return int(first), min(int(last) if last else size - 1, size - 1)


@contextmanager
def serving(hub: LoopbackHub) -> Iterator[LoopbackHub]:
    """Serve `hub` on free ports of 127.0.0.1; `hub.url` and `hub.cdn` say which."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    def do(work: object) -> object:
        return asyncio.run_coroutine_threadsafe(work, loop).result()  # type: ignore[arg-type]

    runners = [web.AppRunner(application, shutdown_timeout=0) for application in hub.applications()]
    try:
        ports = [do(_start(runner)) for runner in runners]
        hub.url, hub.cdn = (f"http://127.0.0.1:{port}" for port in ports)
        yield hub
    finally:
        loop.call_soon_threadsafe(hub.over.set)
        for runner in runners:
            do(runner.cleanup())
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


async def _start(runner: web.AppRunner) -> int:
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    return int(runner.addresses[0][1])
