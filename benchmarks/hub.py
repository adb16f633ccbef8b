"""A Hub in a process of its own, as fast as this machine can send files: `python -m benchmarks.hub FOLDER LATENCY_S`.

It gives out the files of a folder as one repository, large ones from a second port as the real one does, and counts
the bytes that it was asked for. The first line it prints is its address; `/counted` says the bytes since the last
time it was asked.
"""

from __future__ import annotations

import asyncio
import hashlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from aiohttp import web

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

COMMIT = "0123456789abcdef0123456789abcdef01234567"
REPO = "Bench/Model"


class Hub:
    def __init__(self, folder: Path, latency_s: float) -> None:
        self._folder = folder
        self._latency_s = latency_s
        self._counted = 0
        self._entries = {path.name: _entry(path) for path in sorted(folder.iterdir())}
        self.stored_at = ""

    @web.middleware
    async def slowly(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        await asyncio.sleep(self._latency_s)
        return await handler(request)

    async def model(self, _: web.Request) -> web.Response:
        return web.json_response({"id": REPO, "sha": COMMIT, "siblings": [], "private": False})

    async def tree(self, _: web.Request) -> web.Response:
        return web.json_response(list(self._entries.values()))

    async def resolve(self, request: web.Request) -> web.StreamResponse:
        name = request.match_info["name"]
        entry = self._entries[name]
        headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{entry["oid"]}"'}
        lfs = entry.get("lfs")
        if isinstance(lfs, dict):
            headers |= {"X-Linked-Etag": f'"{lfs["oid"]}"', "X-Linked-Size": str(entry["size"])}
            return web.Response(status=302, headers={**headers, "Location": f"{self.stored_at}/{name}"})
        if request.method == "GET":
            self._counted += int(str(entry["size"]))
        return web.Response(body=(self._folder / name).read_bytes(), headers=headers)

    async def stored(self, request: web.Request) -> web.StreamResponse:
        name = request.match_info["name"]
        span = request.http_range
        size = int(str(self._entries[name]["size"]))
        self._counted += min(span.stop or size, size) - (span.start or 0)
        return web.FileResponse(self._folder / name)

    async def counted(self, _: web.Request) -> web.Response:
        count, self._counted = self._counted, 0
        return web.json_response(count)


def _entry(path: Path) -> dict[str, object]:
    content = path.read_bytes()
    git = hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
    entry: dict[str, object] = {"type": "file", "path": path.name, "size": len(content), "oid": git}
    if path.suffix == ".safetensors":
        oid = hashlib.sha256(content).hexdigest()
        entry["lfs"] = {"oid": oid, "size": len(content), "pointerSize": 134}
    return entry


async def serve(folder: Path, latency_s: float) -> None:
    hub = Hub(folder, latency_s)
    told, stored = web.Application(middlewares=[hub.slowly]), web.Application(middlewares=[hub.slowly])
    told.router.add_get(f"/api/models/{REPO}", hub.model)
    told.router.add_get(f"/api/models/{REPO}/revision/{{revision}}", hub.model)
    told.router.add_get(f"/api/models/{REPO}/tree/{{revision}}", hub.tree)
    told.router.add_get(f"/{REPO}/resolve/{{revision}}/{{name}}", hub.resolve)
    told.router.add_get("/counted", hub.counted)
    stored.router.add_get("/{name}", hub.stored)
    addresses = [await _start(application) for application in (told, stored)]
    hub.stored_at = addresses[1]
    print(addresses[0], flush=True)
    await asyncio.Event().wait()


async def _start(application: web.Application) -> str:
    runner = web.AppRunner(application)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    return f"http://127.0.0.1:{runner.addresses[0][1]}"


if __name__ == "__main__":
    asyncio.run(serve(Path(sys.argv[1]), float(sys.argv[2])))
