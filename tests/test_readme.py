"""README.md is true: its commands run, its examples work, its tables say what the program says.

Blocks run in the order of the page, in one scratch folder, on the simulated engine, with free ports in place of the
page's. A ```console block shows what follows each `$ ` line: the result, and of what goes to stderr the errors and
notes (progress is a live line in a terminal). A line that is just `…` stands for any lines. A block that cannot run
here carries `<!-- not run: reason -->` right before it; its agent-manager commands must still be understood.
"""

from __future__ import annotations

import ast
import os
import re
import shlex
import subprocess
import sys
import xml.etree.ElementTree as ET
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from agent_manager import errors
from agent_manager.catalog.load import load_catalog
from agent_manager.cli import app
from agent_manager.cli.group import ALIASES, PLANNED, VERBS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.conftest import FreePort

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
HOST = (ROOT / "docs" / "host.md").read_text(encoding="utf-8")
TROUBLESHOOTING = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
CATALOG = (ROOT / "models.yaml").read_text(encoding="utf-8")
AGENT_PORTS = (8000, 8001, 8002)
ENGINE_PORT_OFFSET = 100
PATIENCE_S = 30.0

BLOCK = re.compile(r"(?:^<!-- not run: *(.*?) *-->\n)?^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
DONE = "\ncode=$?; echo; echo @@$code@@\n"
DONE_SAID = r"\n@@(\d+)@@\n"
"""What the shell is told after each command of a console block, and what it then says: the exit code."""
WRAPPER = """\
#!/bin/sh
# What a person at a terminal is left with: without the progress.
{program} "$@" 2>"$0.err"
code=$?
grep -E '^(error|warning|note|  hint):|^[^ ]+:[0-9]+: ' "$0.err" >&2
exit $code
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """A fenced block; `not_run` is the reason why it is not run."""

    language: str
    text: str
    not_run: str | None


def blocks(*languages: str, page: str = README) -> list[Block]:
    found = [Block(language=match[2], text=match[3], not_run=match[1]) for match in BLOCK.finditer(page)]
    return [block for block in found if not languages or block.language in languages]


class Reader:
    """A person who types in what the page says, in a folder that holds the catalog."""

    def __init__(self, folder: Path, free_port: FreePort) -> None:
        self.folder = folder
        self._ports: dict[str, str] = {}
        for port in AGENT_PORTS:
            free = free_port()
            self._ports |= {str(port + more): str(free + more) for more in (0, ENGINE_PORT_OFFSET)}
        quick = CATALOG.replace("load_seconds: 2.0", "load_seconds: 0.05").replace("_ms: 60", "_ms: 1")
        assert quick.count("0.05") == 1
        (folder / "models.yaml").write_text(self.ours(quick), encoding="utf-8")
        wrapper = folder / "bin" / "agent-manager"
        wrapper.parent.mkdir()
        wrapper.write_text(WRAPPER.format(program=shlex.join([sys.executable, "-m", "agent_manager"])))
        wrapper.chmod(0o755)
        self._env = {
            "PATH": f"{wrapper.parent}:{Path(sys.executable).parent}:{os.environ['PATH']}",
            "HOME": str(folder),
            "AGENT_MANAGER_ENGINE": "simulated",
            "AGENT_MANAGER_STATE_DIR": str(folder / "state"),
            "HF_HUB_CACHE": str(folder / "hub"),
        }

    def ours(self, text: str) -> str:
        """The page's text with this test's ports."""
        return _replaced(text, self._ports)

    def theirs(self, text: str) -> str:
        """Our text with the page's ports."""
        return _replaced(text, {ours: theirs for theirs, ours in self._ports.items()})

    def run(self, *argv: str) -> subprocess.CompletedProcess[str]:
        """Run a program to its end, both of its streams in one."""
        return subprocess.run(
            argv,
            cwd=self.folder,
            env=self._env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=PATIENCE_S,
        )


@pytest.fixture
def reader(tmp_path: Path, free_port: FreePort) -> Iterator[Reader]:
    reader = Reader(tmp_path, free_port)
    yield reader
    reader.run("agent-manager", "stop", "--all", "--drain-timeout", "0")


def _replaced(text: str, words: dict[str, str]) -> str:
    return re.sub(rf"\b({'|'.join(words)})\b", lambda match: words[match[0]], text)


def test_every_block_is_of_a_kind_that_is_checked() -> None:
    assert {block.language for block in blocks()} <= {"sh", "console", "python", "yaml"}
    assert all(block.not_run != "" for block in blocks()), "say why"


@pytest.mark.timeout(180)  # a dozen commands, each half a second on an idle machine
def test_what_can_be_run_does_what_the_page_shows(reader: Reader) -> None:
    runnable = [block for block in blocks("sh", "console", "python") if block.not_run is None]
    assert {block.language for block in runnable} >= {"console", "python"}
    for block in runnable:
        match block.language:
            case "python":
                done = reader.run(sys.executable, "-W", "error", "-c", reader.ours(block.text))
                assert done.returncode == 0, f"{block.text}\n{done.stdout}"
                assert done.stdout.strip()
            case "sh":
                done = reader.run("bash", "-e", "-c", reader.ours(block.text))
                assert done.returncode == 0, f"{block.text}\n{done.stdout}"
            case _:
                _check_console(block, reader)


def _check_console(block: Block, reader: Reader) -> None:
    typed = list(_typed(block))
    script = "".join(command + DONE for command, _ in typed)
    done = reader.run("bash", "-c", reader.ours(script))
    parts = re.split(DONE_SAID, reader.theirs(done.stdout))
    for (command, shown), printed, code in zip(typed, parts[0::2], parts[1::2], strict=False):
        assert bool(int(code)) == ("error:" in shown), f"{command}: exit {code}\n{printed}"
        assert re.fullmatch(_pattern(shown), _normal(printed)), f"$ {command}\n{printed}"
    assert len(parts) == 2 * len(typed) + 1, done.stdout


def _typed(block: Block) -> Iterator[tuple[str, str]]:
    """Each command and what the page shows below it."""
    assert block.text.startswith("$ "), block.text
    for part in re.split(r"^\$ ", block.text, flags=re.MULTILINE)[1:]:
        command, _, shown = part.partition("\n")
        yield command, shown


def _normal(text: str) -> str:
    """What varies from run to run taken out: durations, pids, ids of instances, the width of columns."""
    text = re.sub(r"\b\d+(\.\d+)? (s|min|h|d)\b", "T", text)
    text = re.sub(r"\bpid \d+", "pid N", text)
    text = re.sub(r"-[0-9a-f]{8}\b", "-ID", text)
    return "\n".join(" ".join(line.split()) for line in text.strip().splitlines())


def _pattern(shown: str) -> str:
    lines = [".*" if line == "…" else re.escape(line) for line in _normal(shown).splitlines()]
    return "(?s:" + "\n".join(lines).replace("\n.*", "(\n.*)?") + ")"


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """An agent-manager command of the page: its verb and the options given."""

    verb: str | None
    options: tuple[str, ...]


def _commands(text: str) -> Iterator[Command]:
    """Those in a block or in a span of code, whatever stands around them."""
    for line in text.splitlines():
        for found in re.finditer(
            r'(?:^|[\s("/])agent-manager (.*)', line.partition("  #")[0].removeprefix("$ ")
        ):
            words = re.split(r"[|;>)]|&&|  ", found[1])[0].replace('"', "").split()
            names = [word for word in words if not word.startswith("-")]
            verb = next((name for name in names if name in VERBS or name in ALIASES), None)
            unknown = set(words[:1]) - {verb, "VERB"} - {word for word in words if word.startswith("-")}
            assert not unknown, f"'{line}' has no verb"
            options = tuple(word.partition("=")[0] for word in words if re.match(r"--?[a-z]", word))
            yield Command(verb=verb, options=options)


def test_every_command_of_the_page_is_one_the_program_takes(capsys: pytest.CaptureFixture[str]) -> None:
    prose = BLOCK.sub("", README)
    spans = "\n".join(re.findall(r"`([^`\n]+)`", prose))
    found = [command for text in (spans, *(block.text for block in blocks())) for command in _commands(text)]
    assert len(found) > 10
    known: dict[str | None, str] = {}
    for command in found:
        if command.verb not in known:
            assert app.run([command.verb, "--help"] if command.verb else ["--help"]) == 0
            known[command.verb] = capsys.readouterr().out
        for option in command.options:
            assert _takes(known[command.verb], option), f"{command}: no such option"


def _takes(help_text: str, option: str) -> bool:
    """Whether a help text shows the option, whole."""
    return bool(re.search(rf"(?<![\w-]){re.escape(option)}(?![\w-])", help_text))


def test_yaml_blocks_are_catalogs_or_parts_of_one(tmp_path: Path) -> None:
    examples = [*blocks("yaml"), *blocks("yaml", page=HOST)]
    assert len(examples) >= 3
    for number, block in enumerate(examples):
        written: dict[str, Any] = yaml.safe_load(block.text)
        path = tmp_path / f"{number}.yaml"
        whole = written if "version" in written else _laid_over(yaml.safe_load(CATALOG), written)
        path.write_text(block.text if "version" in written else yaml.safe_dump(whole), encoding="utf-8")
        for profile in (None, *written.get("profiles", {})):
            load_catalog(path, profile=profile, environ={"HOME": str(tmp_path)})


def _laid_over(base: dict[str, Any], part: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in part.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _laid_over(merged[key], value) if both else value
    return merged


def test_links_lead_somewhere() -> None:
    headings = re.findall(r"^#+ (.*)$", BLOCK.sub("", README), re.MULTILINE)
    anchors = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
    targets = re.findall(r"\]\(([^)]+)\)", README)
    assert targets
    for target in targets:
        path, _, anchor = target.partition("#")
        assert not path or (ROOT / path).is_file(), f"{target}: no such file"
        assert path or anchor in anchors, f"{target}: no such heading"


def table(*headers: str, page: str = README) -> list[tuple[str, ...]]:
    """The rows of the page's table with these headers."""
    head = re.escape(f"| {' | '.join(headers)} |")
    found = re.search(rf"^{head}\n\|[ -|]+\|\n((?:\|.*\|\n)+)", page, re.MULTILINE)
    assert found, f"no table {headers}"
    return [tuple(cell.strip() for cell in line[1:-1].split(" |")) for line in found[1].splitlines()]


def test_the_table_of_agents_is_that_of_the_catalog() -> None:
    catalog = load_catalog(ROOT / "models.yaml", environ={})
    rows = table("agent", "is for", "model", "context", "port", "download")
    shown = {name.strip("`"): (model, context, port) for name, _, model, context, port, _ in rows}
    declared = {
        agent.name: (agent.model.repo, f"{agent.context // 1024}k", str(agent.port))
        for agent in catalog.agents.values()
    }
    assert shown == declared


def test_the_table_of_verbs_has_them_all_and_their_options(capsys: pytest.CaptureFixture[str]) -> None:
    named: list[str] = []
    for names, does in table("verb", "does"):
        verbs = re.findall(r"`([a-z-]+)", names)
        named += verbs
        assert app.run([verbs[0], "--help"]) == 0
        known = capsys.readouterr().out
        for option in re.findall(r"`(--?[a-z-]+)`", does):
            assert _takes(known, option), f"{verbs[0]} has no {option}"
    assert sorted(named) == sorted([*VERBS, *ALIASES])


def test_the_verbs_that_are_missing_are_named() -> None:
    missing = README.partition("## What is not built yet")[2]
    assert set(PLANNED) <= set(re.findall(r"`([a-z-]+)`", missing))
    assert not set(VERBS) & set(re.findall(r"`([a-z-]+)`", missing))


def test_the_table_of_exit_codes_is_the_error_tree() -> None:
    expected: dict[int, set[str]] = {0: set(), app.UNEXPECTED: {"internal_error"}}
    for each in _tree(errors.AgentManagerError):
        expected.setdefault(each.exit_code, set()).add(each.code)
    shown = {int(code): set(re.findall(r"`(\w+)`", names)) for code, _, names in _exit_rows()}
    assert shown == expected


def _exit_rows() -> list[tuple[str, ...]]:
    return table("exit", "means", "`code` in JSON")


def _tree(root: type[errors.AgentManagerError]) -> Iterator[type[errors.AgentManagerError]]:
    for each in root.__subclasses__():
        yield each
        yield from _tree(each)


def test_the_messages_under_troubleshooting_are_the_programs_own() -> None:
    said = [template for template in map(_template, _strings()) if template]
    for message, _ in table("it says", "do this", page=TROUBLESHOOTING):
        text = message.strip("`")
        assert any(re.fullmatch(template, text) for template in said), f"nothing says: {text}"


def _strings() -> Iterator[ast.expr]:
    """Every text and every format that the program holds."""
    for path in (ROOT / "agent_manager").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, (ast.JoinedStr, ast.Constant)):
                yield node


def _template(node: ast.expr) -> str | None:
    """A pattern for what the text can become; None for one that would match nearly anything."""
    parts = node.values if isinstance(node, ast.JoinedStr) else [node]
    fixed = [part.value for part in parts if isinstance(part, ast.Constant) and isinstance(part.value, str)]
    if sum(len(text) for text in fixed) < 14:
        return None
    return "".join(
        re.escape(part.value) if isinstance(part, ast.Constant) and isinstance(part.value, str) else ".*"
        for part in parts
    )


def test_the_picture_needs_nothing_from_elsewhere_and_says_that_it_is_simulated() -> None:
    text = (ROOT / "docs" / "session.svg").read_text(encoding="utf-8")
    root = ET.fromstring(text)  # noqa: S314 - our own file
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    for wanted in ("url(http", "href", "@import", "<script", "<image"):
        assert wanted not in text
    words = " ".join(element.text or "" for element in root.iter())
    assert "AGENT_MANAGER_ENGINE=simulated" in words
    assert "simulated engine: it generates text, there is no model" in words


def test_the_page_is_short_enough_to_be_read() -> None:
    assert len(README.splitlines()) <= 255
