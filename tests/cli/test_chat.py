"""chat against a server that answers as an engine does, or breaks off as a dying one does."""

from __future__ import annotations

import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.cli.conftest import Call
    from tests.cli.program import Program


class Engine(ThreadingHTTPServer):
    """Answers every completion with `script`: text is sent as it is, None closes the connection there."""

    daemon_threads = True

    def __init__(self, port: int, script: list[str | None], status: int) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.script = script
        self.status = status
        self.heard: list[dict[str, Any]] = []

    def handle_error(self, *_: object) -> None:
        """A client that goes away in the middle is what some of these tests are about."""


class Handler(BaseHTTPRequestHandler):
    server: Engine
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        self.server.heard.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(self.server.status)
        streams = self.server.status == 200
        self.send_header("Content-Type", "text/event-stream" if streams else "application/json")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for piece in self.server.script:
            if piece is None:
                self.close_connection = True
                return
            data = piece.encode()
            self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
        self.wfile.write(b"0\r\n\r\n")

    def log_message(self, *_: object) -> None:
        """Tests print nothing."""


def delta(content: str | None, *, finish: str | None = None, **more: str) -> str:
    message = {"content": content, **more} if content is not None else more
    choice = {"index": 0, "delta": message, "finish_reason": finish}
    return event({"choices": [choice]})


def event(fields: dict[str, Any]) -> str:
    whole = {
        "id": "1",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": "dev",
        "choices": [],
        **fields,
    }
    return f"data: {json.dumps(whole)}\n\n"


USAGE = event({"usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}})
DONE = "data: [DONE]\n\n"
HELLO: list[str | None] = [delta("Hel"), delta("lo"), delta(None, finish="stop"), USAGE, DONE]


@contextmanager
def serving(program: Program, script: list[str | None], status: int = 200) -> Iterator[Engine]:
    engine = Engine(program.ports["dev"], script, status)
    thread = threading.Thread(target=engine.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield engine
    finally:
        engine.shutdown()
        thread.join()
        engine.server_close()


def test_the_real_program_streams_to_stdout_and_nothing_else(program: Program) -> None:
    with serving(program, HELLO):
        done = program.run("chat", "dev", "hi")
    assert (done.code, done.out, done.err) == (0, "Hello\n", "")


def test_the_answer_goes_to_stdout_and_nothing_else(program: Program, call: Call) -> None:
    with serving(program, HELLO) as engine:
        done = call(
            "chat", "dev", "hi", "there", "--system", "be kind", "--max-tokens", "7", "--temperature=0"
        )
    assert (done.code, done.out, done.err) == (0, "Hello\n", "")
    (asked,) = engine.heard
    assert asked["model"] == "dev"
    assert asked["messages"] == [
        {"role": "system", "content": "be kind"},
        {"role": "user", "content": "hi there"},
    ]
    assert (asked["max_tokens"], asked["temperature"], asked["stream"]) == (7, 0.0, True)


def test_an_agents_own_system_prompt_goes_along_unless_another_is_given(program: Program, call: Call) -> None:
    text = program.catalog.read_text()
    program.catalog.write_text(text.replace("model: tiny, port", "model: tiny, system: You code., port"))
    with serving(program, HELLO) as engine:
        call("chat", "dev", "hi")
        call("chat", "dev", "hi", "--system", "be kind")
    prompts = [asked["messages"][0] for asked in engine.heard]
    assert prompts == [{"role": "system", "content": text} for text in ("You code.", "be kind")]


def test_what_is_not_given_is_left_to_the_agent(program: Program, call: Call) -> None:
    with serving(program, HELLO) as engine:
        call("chat", "dev", "hi")
    assert not {"max_tokens", "temperature"} & set(engine.heard[0])


def test_json_is_one_document(program: Program, call: Call) -> None:
    with serving(program, HELLO):
        done = call("chat", "dev", "hi", "--json")
    assert (done.code, done.err) == (0, "")
    assert json.loads(done.out) == {
        "agent": "dev",
        "text": "Hello",
        "finish_reason": "stop",
        "usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5},
    }


@pytest.mark.parametrize("args", [(), ("-",)])
def test_the_prompt_comes_through_a_pipe(program: Program, call: Call, args: tuple[str, ...]) -> None:
    with serving(program, HELLO) as engine:
        done = call("chat", "dev", *args, stdin="a diff\nof two lines\n")
    assert done.code == 0
    assert engine.heard[0]["messages"] == [{"role": "user", "content": "a diff\nof two lines"}]


def test_a_prompt_may_look_like_an_option_after_two_dashes(program: Program, call: Call) -> None:
    with serving(program, HELLO) as engine:
        done = call("chat", "dev", "--", "--json")
    assert done.out == "Hello\n"
    assert engine.heard[0]["messages"][0]["content"] == "--json"


def test_an_empty_prompt_is_refused(call: Call) -> None:
    done = call("chat", "dev", stdin=" \n")
    assert (done.code, done.err.splitlines()[0]) == (2, "error: the prompt is empty")


def test_thoughts_are_not_the_answer(program: Program, call: Call) -> None:
    script = [delta(None, reasoning="let me see"), delta(None, reasoning_content="and see"), *HELLO]
    with serving(program, script):
        assert call("chat", "dev", "hi").out == "Hello\n"


def test_an_agent_that_is_not_there(program: Program, call: Call) -> None:
    done = call(
        "chat", "dev", "hi", env={"HTTP_PROXY": "http://127.0.0.1:1", "ALL_PROXY": "http://127.0.0.1:1"}
    )
    assert (done.code, done.out) == (5, "")
    place = f"http://localhost:{program.ports['dev']}/v1"
    assert done.err == f"error: dev does not answer at {place}\n  hint: agent-manager launch dev\n"


def test_no_proxy_comes_between(program: Program, call: Call) -> None:
    with serving(program, HELLO):
        assert call("chat", "dev", "hi", env={"HTTP_PROXY": "http://127.0.0.1:1"}).out == "Hello\n"


ENDED = 'data: {"error": {"message": "EngineCore encountered an issue", "code": 500}}\n\n'


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ([delta("Hel"), None], "the answer of dev broke off"),
        ([delta("Hel"), DONE], "the answer of dev broke off"),
        ([delta("Hel"), ENDED, DONE], "the answer of dev broke off: EngineCore encountered an issue"),
    ],
)
def test_an_answer_that_breaks_off_is_kept_and_an_error(
    program: Program, call: Call, script: list[str | None], reason: str
) -> None:
    with serving(program, script):
        done = call("chat", "dev", "hi")
        as_json = call("chat", "dev", "hi", "--json")
    assert (done.code, done.out) == (1, "Hel\n")
    assert done.err == f"error: {reason}\n  hint: agent-manager logs dev --tail 20\n"
    assert as_json.code == 1
    assert json.loads(as_json.out) == {"agent": "dev", "text": "Hel", "finish_reason": None, "usage": None}
    assert json.loads(as_json.err)["error"]["code"] == "operation_failed"


def test_a_refusal_is_in_the_engines_words(program: Program, call: Call) -> None:
    body = json.dumps(
        {"error": {"message": "max_tokens is too large", "type": "BadRequestError", "code": 400}}
    )
    with serving(program, [body], status=400):
        done = call("chat", "dev", "hi")
    assert (done.code, done.err.splitlines()[0]) == (1, "error: dev refused: max_tokens is too large")


def test_something_else_listens_there(program: Program, call: Call) -> None:
    with serving(program, ["data: <html>hello</html>\n\n"]):
        done = call("chat", "dev", "hi")
    assert done.code == 1
    assert "does not speak OpenAI's protocol" in done.err
    assert len(done.err.splitlines()) == 1


def test_a_conversation_remembers_and_ends_with_the_input(program: Program) -> None:
    with serving(program, HELLO) as engine, program.terminal("chat", "dev") as terminal:
        terminal.until(lambda lines: lines[-1:] == [">"])
        terminal.send("one\n")
        terminal.until(lambda lines: lines[-2:] == ["Hello", ">"])
        terminal.send("two\n")
        terminal.until(lambda lines: lines.count("Hello") == 2 and lines[-1] == ">")
        terminal.send("\x04")
        assert terminal.wait() == 0
    assert [message["content"] for message in engine.heard[1]["messages"]] == ["one", "Hello", "two"]


def test_a_conversation_survives_an_answer_that_breaks_off(program: Program) -> None:
    with serving(program, [delta("Hel"), None]), program.terminal("chat", "dev") as terminal:
        terminal.until(lambda lines: lines[-1:] == [">"])
        terminal.send("one\n")
        terminal.until(lambda lines: lines[-3:] == ["Hel", "warning: the answer of dev broke off", ">"])
        terminal.interrupt()
        assert terminal.wait() == 130
        assert "Traceback" not in terminal.raw.decode()


def test_ctrl_c_stops_an_answer_and_not_the_conversation(program: Program) -> None:
    with stalling(program) as (engine, stalled), program.terminal("chat", "dev") as terminal:
        terminal.until(lambda lines: lines[-1:] == [">"])
        terminal.send("one\n")
        terminal.until(lambda lines: lines[-1:] == ["Hel"])
        terminal.interrupt()
        terminal.until(lambda lines: lines[-2:] == ["note: stopped", ">"])
        stalled.set()
        terminal.send("\x04")
        assert terminal.wait() == 0
    assert len(engine.heard) == 1


@contextmanager
def stalling(program: Program) -> Iterator[tuple[Engine, threading.Event]]:
    """An engine that says a word and then nothing until the event."""
    stalled = threading.Event()

    class Stalling(list[str | None]):
        def __iter__(self) -> Iterator[str | None]:
            yield delta("Hel")
            stalled.wait(30)
            yield None

    with serving(program, Stalling()) as engine:
        try:
            yield engine, stalled
        finally:
            stalled.set()
