"""What holds for every verb: version, help, errors, exit codes, streams, colours, closed pipes."""

from __future__ import annotations

import json
import os
import re
import subprocess
from typing import TYPE_CHECKING

import pytest

from agent_manager import __version__
from agent_manager.cli.group import PLANNED, VERBS
from tests.checkpoints.weights import safetensors
from tests.cli.program import argv

if TYPE_CHECKING:
    from tests.cli.conftest import Call
    from tests.cli.program import Program

ANSI = re.compile(r"\x1b\[[0-9;]*m")


@pytest.mark.parametrize("line", ["--version", "-V", "status --version", "--json --version"])
def test_version(program: Program, line: str) -> None:
    done = program.run(*line.split())
    assert (done.code, done.out, done.err) == (0, f"agent-manager {__version__}\n", "")


def test_version_needs_nothing_but_the_interpreter(program: Program) -> None:
    script = (
        "import sys; before = set(sys.modules); sys.argv = ['agent-manager', '--version']\n"
        "from agent_manager.__main__ import main\n"
        "try:\n main()\nexcept SystemExit: pass\n"
        "print(sorted(set(sys.modules) - before))"
    )
    done = subprocess.run(
        [argv()[0], "-c", script],
        capture_output=True,
        text=True,
        check=True,
        env=program.env,
        cwd=program.folder,
    )
    modules = set(eval(done.stdout.splitlines()[-1]))  # noqa: S307 - a list that this test printed
    assert modules <= {"__future__", "agent_manager", "agent_manager.__main__"}


@pytest.mark.parametrize("line", ["--help", "-h", ""])
def test_help_lists_the_verbs_and_options_and_shows_examples(program: Program, line: str) -> None:
    done = program.run(*line.split())
    assert (done.code, done.err) == (0, "")
    for word in (
        *VERBS,
        "--catalog",
        "--engine",
        "--runtime",
        "--profile",
        "--json",
        "--no-color",
        "Examples",
    ):
        assert word in done.out
    assert not any(f"│ {verb} " in done.out for verb in PLANNED)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_with_examples_and_the_global_options(call: Call, verb: str) -> None:
    done = call(verb, "--help")
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith(f"Usage: agent-manager {verb} [OPTIONS]")
    assert f"  agent-manager {verb}" in done.out or f"(agent-manager {verb}" in done.out
    assert "Global options" in done.out
    assert "--catalog" in done.out


def test_help_imports_nothing_heavy(program: Program) -> None:
    script = (
        "import sys; sys.argv = ['agent-manager', '--help']\n"
        "from agent_manager.__main__ import main\n"
        "try:\n main()\nexcept SystemExit: pass\n"
        "print(sorted(sys.modules))"
    )
    done = subprocess.run(
        [argv()[0], "-c", script],
        capture_output=True,
        text=True,
        check=True,
        env=program.env,
        cwd=program.folder,
    )
    modules = set(eval(done.stdout.splitlines()[-1]))  # noqa: S307 - a list that this test printed
    assert not modules & {"pydantic", "yaml", "asyncio", "aiohttp", "psutil", "docker", "openai", "pynvml"}


def test_an_error_is_for_stderr_and_the_exit_code(program: Program) -> None:
    done = program.run("lanch", "dev")
    assert (done.code, done.out) == (2, "")
    assert done.err == "error: no verb named 'lanch'\n  hint: did you mean 'launch'?\n"


@pytest.mark.parametrize(
    ("line", "message", "hint"),
    [
        ("lanch dev", "no verb named 'lanch'", "did you mean 'launch'?"),
        ("frobnicate", "no verb named 'frobnicate'", f"verbs are: {', '.join(VERBS)}"),
        ("launch", "missing argument 'AGENT'", "agent-manager launch --help shows what it takes"),
        ("launch dev --bogus", "no such option: --bogus", "agent-manager launch --help shows what it takes"),
        ("--xyzzy launch dev", "no such option: --xyzzy", "agent-manager --help shows what it takes"),
        ("launch dev --dry-rum", "no such option: --dry-rum", "did you mean '--dry-run'?"),
        (
            "status extra",
            "got unexpected extra argument(s) (extra)",
            "agent-manager status --help shows what it takes",
        ),
        ("status --engine", "option '--engine' needs a value", "agent-manager --help lists the options"),
        (
            "status --engine llama",
            "invalid value for '--engine': 'llama' is not one of 'vllm', 'vllm-cpu', 'simulated'",
            "agent-manager --help shows what it takes",
        ),
        (
            "launch dev --drain-timeout=-1",
            "invalid value for '--drain-timeout': '-1' is not a duration such as 90, 90s or 2m",
            "agent-manager launch --help shows what it takes",
        ),
        ("launch dev po", "several agents at once are not built yet", "launch one: agent-manager launch dev"),
        ("stop dev --all", "agents and --all exclude each other", "name the agents, or give --all alone"),
        ("env develop", "no agent named 'develop' in {catalog}", "did you mean 'dev'?"),
    ],
)
def test_a_usage_error_is_one_line_and_a_hint(
    program: Program, call: Call, line: str, message: str, hint: str
) -> None:
    message = message.format(catalog=program.catalog)
    done = call(*line.split())
    assert (done.code, done.out) == (2, "")
    assert done.err == f"error: {message}\n  hint: {hint}\n"
    as_json = (
        call(*line.split(), "--json") if not line.endswith("--engine") else call("--json", *line.split())
    )
    assert (as_json.code, as_json.out) == (2, "")
    error = json.loads(as_json.err)["error"]
    assert set(error) == {"code", "message", "hint", "where"}
    assert (error["message"], error["hint"]) == (message, hint)


@pytest.mark.parametrize("verb", PLANNED)
def test_a_verb_that_is_planned_says_so_whatever_follows(call: Call, verb: str) -> None:
    done = call(verb, "dev", "--gpu", "16GiB", "--json")
    assert (done.code, done.out) == (2, "")
    assert json.loads(done.err)["error"]["code"] == "not_yet"


def test_a_broken_catalog_shows_every_problem_with_its_place(program: Program, call: Call) -> None:
    program.catalog.write_text(
        "version: 1\nmodels:\n  tiny: {repo: Qwen/Qwen2.5-0.5B-Instruct}\n"
        "agents:\n  dev: {model: tiny, port: nine, context: 2k}\n  po: {model: tinny, port: 20001, context: 2k}\n"
    )
    done = call("status")
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith(f"error: {program.catalog}: 2 problems\n")
    assert f"{program.catalog}:5: agents.dev.port: " in done.err
    assert f"{program.catalog}:6: agents.po.model: " in done.err
    error = json.loads(call("status", "--json").err)["error"]
    assert error["code"] == "catalog_invalid"
    assert [(each["line"], each["path"]) for each in error["problems"]] == [
        (5, "agents.dev.port"),
        (6, "agents.po.model"),
    ]


def test_an_option_beats_the_environment(program: Program) -> None:
    bad = {"AGENT_MANAGER_CATALOG": str(program.folder / "absent.yaml"), "AGENT_MANAGER_PROFILE": "absent"}
    assert "absent.yaml" in program.run("models", env=bad).err
    done = program.run("models", "--catalog", str(program.catalog), "--profile=smaller", env=bad)
    assert done.code == 0
    assert (
        "no profile named 'absent'" in program.run("models", "--catalog", str(program.catalog), env=bad).err
    )
    bad_engine = program.run("models", env={"AGENT_MANAGER_ENGINE": "llama"})
    assert "'llama' is not one of" in bad_engine.err
    assert bad_engine.code == 2


def test_a_mistake_of_ours_is_one_line_and_the_traceback_only_with_v(program: Program) -> None:
    # A folder where a file belongs, in a place the catalog's reader does not expect one.
    env = {"AGENT_MANAGER_TEST": "1"}
    script = (
        "import sys, agent_manager.cli.models as models\n"
        "def broken(*_): raise ZeroDivisionError('of all\\nthings')\n"
        "models.look_up = broken\n"
        "from agent_manager.__main__ import main\n"
        "sys.argv[0] = 'agent-manager'; main()\n"
    )

    def broken(*args: str) -> tuple[int, str, str]:
        done = subprocess.run(
            [argv()[0], "-c", script, *args],
            capture_output=True,
            text=True,
            check=False,
            env=program.env | env,
            cwd=program.folder,
        )
        return done.returncode, done.stdout, done.stderr

    code, out, err = broken("models")
    assert (code, out) == (1, "")
    assert err.splitlines()[0] == "error: internal error: ZeroDivisionError: of all things"
    assert len(err.splitlines()) == 2
    code, out, err = broken("models", "-v")
    assert "Traceback" in err
    code, out, err = broken("models", "--json")
    assert json.loads(err)["error"]["code"] == "internal_error"


def test_v_shows_where_a_handled_error_came_from(call: Call) -> None:
    assert "Traceback" not in call("env", "nobody").err
    assert "Traceback" in call("env", "nobody", "-v").err


def test_models_as_a_table_and_as_json(program: Program) -> None:
    done = program.run("models")
    assert done.code == 0
    lines = done.out.splitlines()
    assert lines[0].split() == ["MODEL", "SOURCE", "REVISION", "ON", "DISK", "AGENTS"]
    assert lines[1].split() == ["tiny", "Qwen/Qwen2.5-0.5B-Instruct", "0123456789ab", "no", "dev,", "po"]
    assert "there is no folder" in done.err
    document = json.loads(program.run("models", "--json").out)
    tiny, other = document["models"]
    assert (tiny["name"], tiny["agents"], tiny["on_disk"], tiny["size_bytes"]) == (
        "tiny",
        ["dev", "po"],
        False,
        None,
    )
    assert (other["path"], other["on_disk"]) == (str(program.folder / "nowhere"), False)
    assert "there is no folder" in other["reason"]


def test_a_model_on_disk_says_how_much_it_takes(program: Program, call: Call) -> None:
    folder = program.folder / "nowhere"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    weights = safetensors({"model.norm.weight": 1000})
    (folder / "model.safetensors").write_bytes(weights)
    other = json.loads(call("models", "--json").out)["models"][1]
    assert (other["on_disk"], other["size_bytes"], other["folder"]) == (True, len(weights) + 2, str(folder))


def test_colours_are_for_terminals_that_want_them(program: Program) -> None:
    assert "\x1b" not in program.run("env", "nobody").err
    with program.terminal("env", "nobody") as terminal:
        assert terminal.wait() == 2
        assert b"\x1b[1;31merror:" in terminal.raw
    for env, args in (({"NO_COLOR": "1"}, ()), ({"TERM": "dumb"}, ()), ({}, ("--no-color",))):
        for verb in (("env", "nobody"), ("models",), ("--help",)):
            with program.terminal(*verb, *args, env=env) as terminal:
                terminal.wait()
                assert not ANSI.search(terminal.raw.decode()), (env, args, verb)


def test_words_of_others_cannot_repaint_the_terminal(program: Program) -> None:
    done = program.run("env", "no\x1b[2Jbody")
    assert "\x1b" not in done.err
    assert "[/bold]" in program.run("env", "[/bold]").err


def test_a_disk_that_is_full_is_one_line(program: Program) -> None:
    with open("/dev/full", "w") as full:  # noqa: PTH123 - a device, not a path
        done = subprocess.run(
            argv("models"),
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
            env=program.env,
            cwd=program.folder,
        )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "error: the result cannot be written: No space left on device"
    assert "Traceback" not in done.stderr


def test_a_reader_that_goes_away_is_no_error(program: Program) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as closed:
        for args in (("models",), ("--version",), ("env", "dev")):
            done = subprocess.run(
                argv(*args),
                stdout=closed,
                stderr=subprocess.PIPE,
                text=True,
                check=False,
                env=program.env,
                cwd=program.folder,
            )
            assert (done.returncode, done.stderr) == (141, ""), args
