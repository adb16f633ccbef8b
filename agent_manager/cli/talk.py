"""A conversation with an agent over the official client; the only file that imports openai."""

from __future__ import annotations

import json
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from openai import APIConnectionError, APIError, APIStatusError, DefaultHttpxClient, OpenAI

from agent_manager.cli.env import base_url
from agent_manager.errors import NotRunning, OperationFailed

if TYPE_CHECKING:
    from collections.abc import Iterator

    from openai.types.chat import ChatCompletionChunk
    from openai.types.chat.chat_completion_chunk import ChoiceDelta

    from agent_manager.catalog.agents import Agent
    from agent_manager.cli.output import Output

PROMPT = "> "


class Talk:
    """A conversation with one agent; what was said so far goes with every prompt."""

    def __init__(
        self,
        agent: Agent,
        output: Output,
        *,
        key: str,
        system: str | None = None,
        max_tokens: int | None = None,
        temperature: float | None = None,
    ) -> None:
        self._agent = agent
        self._output = output
        # The gateway would add it; an engine by itself does not.
        system = system or agent.system
        self._messages: list[Any] = [{"role": "system", "content": system}] if system else []
        given = {"max_tokens": max_tokens, "temperature": temperature}
        self._settings: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
        # No proxy stands between this machine and itself, whatever HTTP_PROXY says.
        self._client = OpenAI(
            base_url=base_url(agent),
            api_key=key,
            max_retries=0,
            http_client=DefaultHttpxClient(trust_env=False),
        )

    def once(self, prompt: str) -> None:
        """Ask once and print the answer; what arrived is printed even if it breaks off.

        Raises NotRunning when nothing answers there, OperationFailed for anything else that goes wrong.
        """
        with self._client:
            answer = Answer(self._output)
            try:
                self._ask(prompt, answer)
            finally:
                if self._output.json and answer.text:
                    self._output.document(answer.document(self._agent.name))

    def converse(self) -> None:
        """Ask for prompts until the end of input. An answer that breaks off is reported, and the talk goes on.

        Raises NotRunning when nothing answers, KeyboardInterrupt for Ctrl-C at the prompt.
        """
        import readline  # noqa: F401, PLC0415 - its import gives input() a line editor and history

        self._output.note(f"talking to {self._agent.name}; Ctrl-C stops an answer, Ctrl-D ends")
        with self._client:
            while True:
                try:
                    prompt = input(PROMPT).strip()
                except EOFError:
                    self._output.result("")
                    return
                if prompt:
                    self._turn(prompt)

    def _turn(self, prompt: str) -> None:
        try:
            self._ask(prompt, Answer(self._output))
        except KeyboardInterrupt:
            self._output.note("stopped")
        except OperationFailed as error:
            self._output.warning(error.message)

    def _ask(self, prompt: str, answer: Answer) -> None:
        self._messages.append({"role": "user", "content": prompt})
        try:
            with self._failures(answer):
                stream = self._client.chat.completions.create(
                    model=self._agent.name,
                    messages=self._messages,
                    stream=True,
                    stream_options={"include_usage": True},
                    **self._settings,
                )
                with stream:
                    for chunk in stream:
                        answer.take(chunk)
        finally:
            answer.end()
            if answer.text:
                self._messages.append({"role": "assistant", "content": answer.text})
            else:
                self._messages.pop()

    @contextmanager
    def _failures(self, answer: Answer) -> Iterator[None]:
        """The client's errors in our words. A stream without a finish reason was cut, whatever its status."""
        name, place = self._agent.name, base_url(self._agent)
        logs = f"agent-manager logs {name} --tail 20"
        try:
            yield
        except APIConnectionError as error:
            if answer.begun:
                raise OperationFailed(f"the answer of {name} broke off", hint=logs) from error
            raise NotRunning(
                f"{name} does not answer at {place}",
                hint=f"agent-manager launch {name}",
                where=f"agents.{name}",
            ) from error
        except APIStatusError as error:
            raise OperationFailed(f"{name} refused: {_reason(error)}", hint=logs) from error
        except APIError as error:
            raise OperationFailed(f"the answer of {name} broke off: {error.message}", hint=logs) from error
        except json.JSONDecodeError as error:
            raise OperationFailed(f"what listens at {place} does not speak OpenAI's protocol") from error
        if answer.finish_reason is None:
            raise OperationFailed(f"the answer of {name} broke off", hint=logs)


class Answer:
    """An answer as it arrives: printed piece by piece, or kept for --json."""

    def __init__(self, output: Output) -> None:
        self._output = output
        self._pieces: list[str] = []
        self._thinking = False
        self._usage: dict[str, Any] | None = None
        self.begun = False
        self.finish_reason: str | None = None

    @property
    def text(self) -> str:
        """All of it so far."""
        return "".join(self._pieces)

    def document(self, agent: str) -> dict[str, object]:
        """The answer for --json; `finish_reason` is null when it broke off."""
        return {"agent": agent, "text": self.text, "finish_reason": self.finish_reason, "usage": self._usage}

    def take(self, chunk: ChatCompletionChunk) -> None:
        """Print and keep what a chunk brings."""
        self.begun = True
        if chunk.usage is not None:
            self._usage = chunk.usage.model_dump(exclude_none=True)
        for choice in chunk.choices:
            self._think(choice.delta)
            if choice.delta.content:
                self._stop_thinking()
                self._pieces.append(choice.delta.content)
                if not self._output.json:
                    sys.stdout.write(choice.delta.content)
                    sys.stdout.flush()
            self.finish_reason = choice.finish_reason or self.finish_reason

    def end(self) -> None:
        """Leave the cursor at the start of a line."""
        self._stop_thinking()
        if self._pieces and not self._output.json and not self._pieces[-1].endswith("\n"):
            self._output.result("")

    def _think(self, delta: ChoiceDelta) -> None:
        """Reasoning is not the answer: a terminal shows it dimmed, on stderr."""
        extra = delta.model_extra or {}
        thought = extra.get("reasoning") or extra.get("reasoning_content")
        if not thought or self._output.quiet or self._output.json or not sys.stderr.isatty():
            return
        self._thinking = True
        sys.stderr.write(self._output.styled(str(thought), "dim", sys.stderr))
        sys.stderr.flush()

    def _stop_thinking(self) -> None:
        if self._thinking:
            self._thinking = False
            sys.stderr.write("\n")


def _reason(error: APIStatusError) -> str:
    """The server's own words."""
    body = error.body
    message = body.get("message") if isinstance(body, dict) else None
    return str(message or error.message)
