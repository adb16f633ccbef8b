"""A gateway with a key: who needs it, and that nothing it writes has the key or a prompt in it."""

from __future__ import annotations

import contextlib
import http.client
import json
import signal
import socket
from typing import TYPE_CHECKING

from tests.faults.conftest import PATIENCE_S, wait_until

if TYPE_CHECKING:
    import subprocess
    from pathlib import Path

    from tests.conftest import FreePort
    from tests.faults.conftest import Lab

KEY, WRONG, PROMPT = "sesame-9f3a", "barley-7c21", "moonstone-51be"
CATALOG = """\
version: 1
engine: simulated
engines: {{simulated: {{load_seconds: 0.05, time_to_first_token_ms: 1, inter_token_ms: 0}}}}
models: {{small: {{repo: Qwen/Qwen2.5-7B-Instruct-AWQ}}}}
agents: {{dev: {{model: small, port: {dev}, context: 4k, sequences: 4}}}}
gateway: {{port: {port}, {key}}}
"""


class Client:
    """Asks a gateway; `answers` is all it was told."""

    def __init__(self, port: int) -> None:
        self.port = port

    def ask(self, method: str, path: str, *, body: object = None, key: str | None = None) -> int:
        """The status of its answer, 0 when nobody answers."""
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
        content = body if isinstance(body, str) else json.dumps(body)
        with contextlib.closing(
            http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE_S)
        ) as wire:
            try:
                wire.request(method, path, content if body is not None else None, headers)
                answer = wire.getresponse()
                answer.read()
            except OSError:
                return 0
            return answer.status

    def raw(self, data: bytes) -> bytes:
        with socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE_S) as sock:
            sock.sendall(data)
            return sock.recv(1 << 16)


def begin(lab: Lab, port: int, key: str, **environ: str) -> tuple[Client, subprocess.Popen[str]]:
    lab.write(CATALOG.format(port=port, key=key, **lab.ports))
    process = lab.begin("--verbose", "serve", **environ)
    client = Client(port)
    wait_until(lambda: client.ask("GET", "/health") == 200 or process.poll() is not None, "it listens")
    assert process.poll() is None, process.communicate()
    return client, process


def written(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_no_key_and_no_prompt_is_written_anywhere(lab: Lab, free_port: FreePort) -> None:
    client, process = begin(lab, free_port(), "api_key_env: GATE_KEY", GATE_KEY=KEY)
    chat = {"model": "dev", "messages": [{"role": "user", "content": PROMPT}], "max_tokens": 3}
    for path in ("/v1/models", "/running", "/metrics", "/v1/chat/completions", "/upstream/dev/metrics"):
        method = "POST" if path.endswith("completions") else "GET"
        assert [client.ask(method, path, body=chat, key=key) for key in (None, WRONG)] == [401, 401], path
    for said in (chat, {**chat, "stream": True}, {"model": "dev", "prompt": PROMPT}):
        path = "/v1/chat/completions" if "messages" in said else "/v1/completions"
        assert client.ask("POST", path, body=said, key=KEY) == 200
    for broken in ('{"model": "dev", "prompt": "' + PROMPT, json.dumps({**chat, "messages": PROMPT})):
        assert client.ask("POST", "/v1/chat/completions", body=broken, key=KEY) == 400
    assert client.ask("POST", f"/v1/{PROMPT}", body=chat, key=KEY) == 404
    assert b" 400 " in client.raw(
        f"GET / HTTP/1.1\r\nHost: x\r\nAuthorization : Bearer {KEY}\r\n\r\n".encode()
    )
    assert b" 400 " in client.raw(f"{PROMPT} {KEY}\r\n\r\n".encode())
    told = [lab.run(*words) for words in (("status", "--json"), ("logs", "dev"))]
    process.send_signal(signal.SIGTERM)
    told.append(lab.end(process))
    files = written(lab.folder)
    assert any(path.endswith(".log") for path in files), files.keys()
    for place, text in [*files.items(), *((repr(done), repr(done).encode()) for done in told)]:
        for secret in (KEY, WRONG, PROMPT):
            assert secret.encode() not in text, f"{secret} is in {place}"


def test_a_key_can_be_in_a_file_and_is_better_kept_there(lab: Lab, free_port: FreePort) -> None:
    path = lab.folder / "key"
    for mode, warned in ((0o600, False), (0o644, True)):
        path.write_text(f"{KEY}\n")
        path.chmod(mode)
        client, process = begin(lab, free_port(), f"api_key_file: {path}")
        assert [client.ask("GET", "/v1/models", key=key) for key in (KEY, WRONG)] == [200, 401]
        process.send_signal(signal.SIGTERM)
        done = lab.end(process)
        assert (f"chmod 600 {path}" in done.err) == warned


def test_without_a_key_it_listens_to_nobody_else(lab: Lab, free_port: FreePort) -> None:
    lab.write(CATALOG.format(port=free_port(), key='host: "${env:GATE_HOST}"', **lab.ports))
    done = lab.end(lab.begin("serve", GATE_HOST="0.0.0.0"))  # noqa: S104 - refused
    assert done.code == 2
    assert "0.0.0.0 is open to others, and no key is asked for" in done.err
    lab.write(CATALOG.format(port=free_port(), key="host: 0.0.0.0, api_key_env: GATE_KEY", **lab.ports))
    done = lab.end(lab.begin("serve", GATE_KEY=" "))
    assert done.code == 2
    assert "the gateway's key is to be in $GATE_KEY, and nothing is there" in done.err
