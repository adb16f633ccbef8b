"""A gateway that runs as the real program, and clients that keep the score of what they were answered."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import re
from collections import Counter
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import aiohttp

from tests import waiting
from tests.faults.conftest import PATIENCE_S

if TYPE_CHECKING:
    import subprocess
    from collections.abc import AsyncIterator

    from tests.faults.conftest import Done, Lab

until = partial(waiting.until, patience_s=PATIENCE_S)
HANGS_AFTER_S = 50.0
ANSWERED, REFUSED, LOST, HUNG, TWICE, WRONG = "answered", "refused", "lost", "hung", "twice", "wrong"

CATALOG = """\
version: 1
engine: simulated
engines:
  simulated:
    load_seconds: {load_s}
    time_to_first_token_ms: {first_token_ms}
    inter_token_ms: {inter_token_ms}
    stall_timeout: {stall_timeout}
    faults: {{{faults}}}
models:
  small: {{repo: Qwen/Qwen2.5-7B-Instruct-AWQ}}
  large: {{repo: Qwen/Qwen3-14B-AWQ}}
agents:
  po: {{model: small, port: {po}, context: 4k, sequences: {sequences}}}
  dev: {{model: large, port: {dev}, context: 4k, sequences: {sequences}}}
gateway: {{port: {port}, keep_alive: {keep_alive}, max_wait: {max_wait}}}
"""

_SWAPS = re.compile(r'^agent_manager_swaps_total\{agent="(\w*)",result="(\w+)"\} (\S+)', re.MULTILINE)


@dataclass(frozen=True, kw_only=True)
class Got:
    """What a client was answered: `how` it ended, with which status and words."""

    how: str
    status: int = 0
    text: str = ""
    headers: dict[str, str] = field(default_factory=dict)


@dataclass
class Gate:
    """A gateway before agents po and dev, and one session of clients."""

    lab: Lab
    port: int
    session: aiohttp.ClientSession
    process: subprocess.Popen[str] | None = None
    score: Counter[str] = field(default_factory=Counter)
    numbers: itertools.count[int] = field(default_factory=itertools.count)

    def catalog(
        self,
        *,
        load_s: float = 0.05,
        first_token_ms: float = 1,
        inter_token_ms: float = 0,
        stall_timeout: str = "15m",
        keep_alive: str = "-1",
        max_wait: str = "60s",
        sequences: int = 8,
        **faults: str,
    ) -> None:
        """Write the catalog; keywords are faults of agents, such as `dev="oom"`."""
        said = ", ".join(f'{agent}: "{fault}"' for agent, fault in faults.items())
        text = CATALOG.format(
            load_s=load_s,
            first_token_ms=first_token_ms,
            inter_token_ms=inter_token_ms,
            stall_timeout=stall_timeout,
            keep_alive=keep_alive,
            max_wait=max_wait,
            sequences=sequences,
            faults=said,
            port=self.port,
            **self.lab.ports,
        )
        self.lab.write(text)

    async def open(self, **catalog: Any) -> None:  # noqa: ANN401 - those of `catalog`
        """Start the gateway and wait until it listens."""
        if catalog or self.process is None:
            self.catalog(**catalog)
        process = self.process = self.lab.begin("serve")

        async def listens() -> bool:
            assert process.poll() is None, process.communicate()
            with contextlib.suppress(aiohttp.ClientError):
                async with self.session.get(self.url("/health")) as answer:
                    return answer.status == 200
            return False

        await until(listens, "the gateway listens")

    async def end(self) -> Done:
        """Wait until the gateway has ended."""
        assert self.process is not None
        return await asyncio.to_thread(self.lab.end, self.process)

    def url(self, path: str, *, door: str | None = None) -> str:
        return f"http://127.0.0.1:{self.lab.ports[door] if door else self.port}{path}"

    async def ask(
        self,
        agent: str,
        *,
        tokens: int = 2,
        stream: bool = False,
        door: str | None = None,
        words: str = "hello",
    ) -> Got:
        """Ask an agent and count how that ended."""
        try:
            async with asyncio.timeout(HANGS_AFTER_S):
                got = await self._ask(agent, tokens, door, words, stream=stream)
        except TimeoutError:
            got = Got(how=HUNG)
        except (aiohttp.ClientError, ConnectionError) as error:
            got = Got(how=LOST, text=repr(error))
        self.score[got.how] += 1
        return got

    async def _ask(self, agent: str, tokens: int, door: str | None, words: str, *, stream: bool) -> Got:
        name = f"request-{next(self.numbers)}"
        body = body_of(agent, tokens, words, stream=stream)
        url = self.url("/v1/chat/completions", door=door)
        async with self.session.post(url, json=body, headers={"X-Request-Id": name}) as answer:
            text, headers = await answer.text(), dict(answer.headers)
        if answer.status != 200:
            refused = answer.status in (429, 503) and "Retry-After" in headers
            return Got(how=REFUSED if refused else LOST, status=answer.status, text=text, headers=headers)
        judged = _stream(text, agent, name, tokens) if stream else _whole(text, agent, name, tokens)
        return Got(how=judged, status=200, text=text, headers=headers)

    @contextlib.asynccontextmanager
    async def streaming(self, agent: str, tokens: int) -> AsyncIterator[aiohttp.ClientResponse]:
        """A client in the middle of a stream: its first token has come."""
        body = body_of(agent, tokens, "hello", stream=True)
        async with self.session.post(self.url("/v1/chat/completions"), json=body) as answer:
            assert answer.status == 200
            assert (await answer.content.readline()).startswith(b"data: ")
            yield answer

    async def agents(self) -> dict[str, dict[str, Any]]:
        """What /v1/models says, by agent."""
        async with self.session.get(self.url("/v1/models")) as answer:
            return {each["id"]: each for each in (await answer.json())["data"]}

    async def swaps(self) -> dict[tuple[str, str], int]:
        """The swaps there were, by the agent that came and how they ended.

        One is over when the agent that left is put away, which may be after the first answer of the one that came.
        """
        await until(lambda: self.lab.step is None, "no swap is under way")
        async with self.session.get(self.url("/metrics")) as answer:
            return {(a, result): int(float(n)) for a, result, n in _SWAPS.findall(await answer.text())}

    async def until_ready(self, agent: str) -> None:
        async def ready() -> bool:
            return bool((await self.agents())[agent]["state"] == "ready")

        await until(ready, f"{agent} is on the card")

    async def until_idle(self, *agents: str) -> None:
        """Wait until gateway and engine know of no request (for) these agents."""

        async def idle() -> bool:
            now = await self.agents()
            if any(now[agent]["running"] or now[agent]["waiting"] for agent in agents):
                return False
            here = [agent for agent in agents if now[agent]["state"] == "ready"]
            return not any([await self._in_engine(agent) for agent in here])

        await until(idle, "nothing of a request is left")

    async def _in_engine(self, agent: str) -> int:
        async with self.session.get(self.url(f"/upstream/{agent}/metrics")) as answer:
            counts = re.findall(r"^vllm:num_requests_\w+\{[^}]*\} (\S+)", await answer.text(), re.MULTILINE)
        return int(sum(map(float, counts)))


def body_of(agent: str, tokens: int, words: str, *, stream: bool) -> dict[str, Any]:
    body: dict[str, Any] = {
        "model": agent,
        "messages": [{"role": "user", "content": words}],
        "max_tokens": tokens,
        "ignore_eos": True,
    }
    return body | ({"stream": True, "stream_options": {"include_usage": True}} if stream else {})


def _whole(text: str, agent: str, name: str, tokens: int) -> str:
    answer = json.loads(text)
    if answer["model"] != agent or not answer["id"].endswith(name):
        return WRONG
    return ANSWERED if answer["usage"]["completion_tokens"] == tokens else LOST


def _stream(text: str, agent: str, name: str, tokens: int) -> str:
    said = [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: ")]
    chunks = [json.loads(each) for each in said if each != "[DONE]"]
    if any("error" in chunk for chunk in chunks) or not said or said[-1] != "[DONE]":
        return LOST
    if any(chunk["model"] != agent or not chunk["id"].endswith(name) for chunk in chunks):
        return WRONG
    used = [chunk["usage"]["completion_tokens"] for chunk in chunks if chunk.get("usage")]
    if len(used) > 1 or said.count("[DONE]") > 1:
        return TWICE
    return ANSWERED if used == [tokens] else LOST
