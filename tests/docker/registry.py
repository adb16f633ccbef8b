"""A registry on loopback that serves one image: what Docker fetches images from, as small as it can be.

The protocol is the OCI distribution specification; Docker takes plain HTTP from 127.0.0.0/8.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
_CONFIG = "application/vnd.docker.container.image.v1+json"
_LAYER = "application/vnd.docker.image.rootfs.diff.tar.gzip"


@contextmanager
def registry(layers: tuple[bytes, ...]) -> Iterator[str]:
    """Serve an image whose layers hold one file each, of this content; gives `127.0.0.1:PORT`."""
    blobs: dict[str, bytes] = {}
    manifest = _manifest(layers, blobs)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self._answer(send=False)

        def do_GET(self) -> None:
            self._answer(send=True)

        def _answer(self, *, send: bool) -> None:
            kind, _, name = self.path.removeprefix("/v2/").rpartition("/")
            if self.path == "/v2/":
                self._send(200, b"{}", "application/json", send=send)
            elif kind.endswith("manifests"):
                self._send(200, manifest, MANIFEST, send=send)
            elif name in blobs:
                self._send(200, blobs[name], "application/octet-stream", send=send)
            else:
                self._send(404, b"{}", "application/json", send=send)

        def _send(self, status: int, body: bytes, kind: str, *, send: bool) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Docker-Content-Digest", _digest(body))
            self.end_headers()
            if send:
                self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def _manifest(contents: tuple[bytes, ...], blobs: dict[str, bytes]) -> bytes:
    tars = [_tar(f"layer{number}", content) for number, content in enumerate(contents)]
    config = {
        "architecture": "amd64",
        "os": "linux",
        "config": {"Cmd": ["/none"]},
        "rootfs": {"type": "layers", "diff_ids": [_digest(tar) for tar in tars]},
    }
    layers = [_add(blobs, gzip.compress(tar, 1), _LAYER) for tar in tars]
    return json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": _add(blobs, json.dumps(config).encode(), _CONFIG),
            "layers": layers,
        }
    ).encode()


def _add(blobs: dict[str, bytes], blob: bytes, kind: str) -> dict[str, object]:
    blobs[_digest(blob)] = blob
    return {"mediaType": kind, "size": len(blob), "digest": _digest(blob)}


def _digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def _tar(name: str, content: bytes) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        info = tarfile.TarInfo(name)
        info.size = len(content)
        tar.addfile(info, io.BytesIO(content))
    return packed.getvalue()
