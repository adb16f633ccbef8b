"""The JSON that carries an answer: one document, or the chunks of a stream, for chats and for plain text."""

from __future__ import annotations

import json
import time
import uuid
from typing import TYPE_CHECKING, Any

from msgspec import Struct, field

from agent_manager.engines.simulated.generation import Kind

if TYPE_CHECKING:
    from agent_manager.engines.simulated.api import Ask
    from agent_manager.engines.simulated.core import Job, Step

Json = dict[str, Any]


class Progress(Struct):
    """What of one answer has been generated so far."""

    texts: dict[Kind, list[str]] = field(default_factory=lambda: {kind: [] for kind in Kind})
    tokens: int = 0
    finish_reason: str | None = None
    tool_call_id: str = field(default_factory=lambda: f"chatcmpl-tool-{uuid.uuid4().hex}")

    def add(self, step: Step) -> None:
        """Take in a step."""
        self.finish_reason = step.finish_reason
        if step.piece is not None:
            self.texts[step.piece.kind].append(step.piece.text)
            self.tokens += 1

    def text(self, kind: Kind) -> str:
        """All of one kind."""
        return "".join(self.texts[kind])


class Reply:
    """One request's answers, as they grow. Subclasses say how a choice looks."""

    prefix: str
    kind: str
    chunk_kind: str
    end = b"data: [DONE]\n\n"
    """What a stream ends with."""

    def __init__(self, ask: Ask, jobs: list[Job], *, body: Json, request_id: str, fingerprint: str) -> None:
        self._ask = ask
        self._body = body
        self._jobs = jobs
        self._fingerprint = fingerprint
        self._id = f"{self.prefix}-{request_id}"
        self._created = int(time.time())
        self._progress = [Progress() for _ in jobs]

    def add(self, step: Step) -> None:
        """Take in a step."""
        self._progress[step.index].add(step)

    def opening(self) -> list[Json]:
        """The chunks of a stream that come before the first token."""
        return []

    def frame(self, chunk: Json) -> bytes:
        """A chunk as it is sent."""
        return f"data: {json.dumps(chunk, separators=(',', ':'))}\n\n".encode()

    def chunks(self, step: Step) -> list[Json]:
        """The chunks for a step that was just taken in."""
        return [self.chunk(step)]

    def chunk(self, step: Step) -> Json:
        """The chunk for a step, of replies that have one for each."""
        choice = self._streamed(step) | self._ending(step.index)
        chunk = self._chunk([choice])
        if step.finish_reason is not None and not self._ask.include_usage:
            chunk["system_fingerprint"] = self._fingerprint
        return chunk

    def closing(self) -> list[Json]:
        """The chunks of a stream that come after the last token: the usage, if it was asked for."""
        if not self._ask.include_usage:
            return []
        return [self._chunk([]) | {"usage": self._usage(), "system_fingerprint": self._fingerprint}]

    def document(self) -> Json:
        """The whole reply."""
        choices = [self._whole(index) | self._ending(index) for index in range(len(self._jobs))]
        return {
            "id": self._id,
            "object": self.kind,
            "created": self._created,
            "model": self._ask.model,
            "choices": choices,
            "system_fingerprint": self._fingerprint,
            "usage": self._usage(),
        }

    def _streamed(self, step: Step) -> Json:
        raise NotImplementedError

    def _whole(self, index: int) -> Json:
        raise NotImplementedError

    def _chunk(self, choices: list[Json]) -> Json:
        chunk = {
            "id": self._id,
            "object": self.chunk_kind,
            "created": self._created,
            "model": self._ask.model,
            "choices": choices,
        }
        return chunk | {"usage": self._usage()} if self._ask.continuous_usage else chunk

    def _ending(self, index: int) -> Json:
        reason = self._progress[index].finish_reason
        stop_reason = self._jobs[index].answer.stop_reason if reason == "stop" else None
        return {"finish_reason": reason, "stop_reason": stop_reason}

    def _usage(self) -> Json:
        # The prompts are counted once, whatever `n` is: jobs come prompt by prompt, n of each.
        prompt_tokens = sum(job.prompt_tokens for job in self._jobs[:: self._ask.n])
        completion_tokens = sum(progress.tokens for progress in self._progress)
        return {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": completion_tokens,
            "total_tokens": prompt_tokens + completion_tokens,
        }


class TextReply(Reply):
    """The reply of /v1/completions."""

    prefix = "cmpl"
    kind = chunk_kind = "text_completion"

    def _streamed(self, step: Step) -> Json:
        return {"index": step.index, "text": step.piece.text if step.piece else "", "logprobs": None}

    def _whole(self, index: int) -> Json:
        return {"index": index, "text": self._progress[index].text(Kind.CONTENT), "logprobs": None}


class ChatReply(Reply):
    """The reply of /v1/chat/completions."""

    prefix = "chatcmpl"
    kind = "chat.completion"
    chunk_kind = "chat.completion.chunk"

    def opening(self) -> list[Json]:
        """One chunk for each choice, with the role."""
        delta = {"role": "assistant", "content": ""}
        return [
            self._chunk([{"index": index, "delta": delta, "logprobs": None, "finish_reason": None}])
            for index in range(len(self._jobs))
        ]

    def _streamed(self, step: Step) -> Json:
        return {"index": step.index, "delta": self._delta(step), "logprobs": None}

    def _delta(self, step: Step) -> Json:
        if step.piece is None:
            return {}
        match step.piece.kind:
            case Kind.REASONING:
                return {"reasoning": step.piece.text}
            case Kind.CONTENT:
                return {"content": step.piece.text}
            case Kind.TOOL:
                return {"tool_calls": [self._tool_delta(step.index, step.piece.text)]}

    def _tool_delta(self, index: int, text: str) -> Json:
        progress = self._progress[index]
        if len(progress.texts[Kind.TOOL]) > 1:
            return {"index": 0, "function": {"arguments": text}}
        return {"index": 0, **self._tool_call(progress)}

    def _whole(self, index: int) -> Json:
        progress = self._progress[index]
        content = progress.text(Kind.CONTENT) if progress.texts[Kind.CONTENT] else None
        message: Json = {"role": "assistant", "content": content}
        if progress.texts[Kind.REASONING]:
            message["reasoning"] = progress.text(Kind.REASONING)
        if progress.texts[Kind.TOOL]:
            message["tool_calls"] = [self._tool_call(progress)]
        return {"index": index, "message": message, "logprobs": None}

    def _tool_call(self, progress: Progress) -> Json:
        name = self._ask.tool.name if self._ask.tool else ""
        function = {"name": name, "arguments": progress.text(Kind.TOOL)}
        return {"id": progress.tool_call_id, "type": "function", "function": function}

    def _ending(self, index: int) -> Json:
        ending = super()._ending(index)
        # As in vLLM: a tool that the client named itself ends with "stop".
        called = bool(self._progress[index].texts[Kind.TOOL])
        if ending["finish_reason"] == "stop" and called and not self._ask.tool_is_named:
            ending["finish_reason"] = "tool_calls"
        return ending
