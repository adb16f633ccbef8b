"""The verbs on simulated engines, as a person and as a script use them."""

from __future__ import annotations

import json
import re
import signal
import subprocess
from datetime import datetime
from typing import TYPE_CHECKING

import pytest

from tests.cli.program import make_program

if TYPE_CHECKING:
    from pathlib import Path

    from tests.cli.program import Program
    from tests.conftest import FreePort

SIMULATED = ("--engine", "simulated")


def states(program: Program) -> dict[str, str]:
    document = json.loads(program.run("status", "--json").out)
    return {agent["name"]: agent["state"] for agent in document["agents"]}


def test_the_main_job(program: Program) -> None:
    dev, po = (f"http://localhost:{program.ports[name]}/v1" for name in ("dev", "po"))

    launched = program.run("launch", "po", *SIMULATED)
    assert launched.code == 0, launched.err
    assert launched.out.startswith("po is ready after ")
    assert f"address   {po}\n" in launched.out
    assert "simulated (process): its text is generated, there is no model\n" in launched.out
    assert "simulated engine: it generates text, there is no model\n" in launched.err
    assert "loading po\n" in launched.err
    assert "\x1b" not in launched.out + launched.err

    said = program.run("chat", "po", "hello", "--max-tokens", "5")
    assert (said.code, said.err) == (0, "")
    assert "simulated" in said.out

    swapped = program.run("launch", "dev", *SIMULATED, "--json")
    assert swapped.code == 0, swapped.err
    result = json.loads(swapped.out)
    assert (result["agent"], result["base_url"], result["replaced"]) == ("dev", dev, ["po"])
    assert (result["engine"], result["simulated"], result["already_running"]) == ("simulated", True, False)

    again = program.run("launch", "dev", *SIMULATED)
    assert (again.code, again.out.splitlines()[0]) == (0, "dev was ready already")

    table = program.run("ps")
    assert (table.code, table.err) == (0, "")
    assert re.match(r"Simulated 16 GB card: \d+\.\d\d GiB of 15\.47 GiB used\n\n", table.out)
    row = next(line for line in table.out.splitlines() if line.startswith("dev "))
    assert re.match(rf"dev +ready +\d+ s ago +simulated +tiny +\d+\.\d\d GiB +{dev}$", row)

    log = program.run("logs", "po", "--tail", "3")
    assert (log.code, log.err) == (0, "")
    assert len(log.out.splitlines()) == 3

    stopped = program.run("stop")
    assert (stopped.code, stopped.out) == (0, "stopped dev\n")
    assert states(program) == {"dev": "absent", "po": "absent"}


def test_status_is_the_contract(program: Program) -> None:
    program.run("launch", "dev", *SIMULATED, "-q")
    document = json.loads(program.run("status", "--json").out)
    gpu = document["gpu"]
    assert (gpu["uuid"], gpu["simulated"], document["owner"]) == ("SIM-0", True, None)
    assert 0 < gpu["used_bytes"] < gpu["total_bytes"]
    assert gpu["name"]
    dev, po = document["agents"]
    ports = program.ports
    assert (dev["name"], dev["state"], dev["engine"], dev["runtime"]) == (
        "dev",
        "ready",
        "simulated",
        "process",
    )
    assert (dev["model"], dev["port"], dev["engine_port"]) == ("tiny", ports["dev"], ports["dev"] + 100)
    assert dev["base_url"] == f"http://localhost:{ports['dev']}/v1"
    assert dev["instance_id"].startswith("dev-")
    assert datetime.fromisoformat(dev["started_at"]).tzinfo is not None
    assert dev["ready_after_s"] > 0
    assert (po["name"], po["state"], po["port"], po["base_url"]) == ("po", "absent", ports["po"], None)
    assert (po["instance_id"], po["started_at"], po["ready_after_s"], po["phase"]) == (None, None, None, None)


def test_nothing_runs(program: Program) -> None:
    document = json.loads(program.run("status", "--json").out)
    assert (document["gpu"], document["owner"]) == (None, None)
    assert program.run("stop").code == 5
    assert program.run("stop", "dev").code == 5
    assert program.run("stop", "--all").out == "nothing was running\n"
    assert json.loads(program.run("stop", "--all", "--json").out) == {"stopped": []}
    logs = program.run("logs", "dev", "--json")
    assert (logs.code, logs.out) == (5, "")
    assert json.loads(logs.err)["error"]["code"] == "not_running"


def test_a_dry_run_touches_nothing(program: Program) -> None:
    done = program.run("launch", "dev", *SIMULATED, "--dry-run")
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith("dev on SIM-0: simulated (process)\n  1. start dev: ")
    assert "GiB" in done.out
    assert f"--port {program.ports['dev'] + 100}" in done.out
    plan = json.loads(program.run("launch", "dev", *SIMULATED, "--dry-run", "--json").out)
    assert (plan["agent"], plan["engine"], plan["card"]) == ("dev", "simulated", "SIM-0")
    assert [set(step) for step in plan["steps"]] == [{"verb", "subject", "cause"}]
    assert states(program) == {"dev": "absent", "po": "absent"}


def test_quiet_says_nothing_when_it_went_well(program: Program) -> None:
    for line in ("launch dev -q", "restart dev --quiet", "stop dev -q"):
        done = program.run(*line.split(), *SIMULATED)
        assert (done.code, done.out, done.err) == (0, "", ""), line


def test_restart_is_a_new_instance(program: Program) -> None:
    first = json.loads(program.run("launch", "dev", *SIMULATED, "--json").out)
    second = json.loads(program.run("restart", "dev", *SIMULATED, "--json", "--drain-timeout", "1s").out)
    assert first["instance_id"] != second["instance_id"]
    assert second["already_running"] is False


def test_no_engine_chosen_and_no_gpu_names_the_choices(program: Program) -> None:
    done = program.run("launch", "dev", "--json")
    assert (done.code, done.out) == (4, "")
    error = json.loads(done.err.splitlines()[-1])["error"]
    assert error["code"] == "no_gpu"
    assert all(f"--engine {name}" in error["hint"] for name in ("vllm", "vllm-cpu", "simulated"))


def said_by_a_shell(program: Program, script: str) -> str:
    return subprocess.run(
        ["/bin/sh", "-c", script], capture_output=True, text=True, check=True, env=program.env
    ).stdout


def test_env_is_for_eval(program: Program) -> None:
    done = program.run("env", "dev")
    assert done.code == 0
    assert done.err == "note: dev is absent; 'agent-manager launch dev' puts it on the card\n"
    said = said_by_a_shell(program, f'{done.out}\necho "$OPENAI_BASE_URL $OPENAI_API_KEY $OPENAI_MODEL"')
    assert said == f"http://localhost:{program.ports['dev']}/v1 unused dev\n"
    assert program.run("env", "dev", "-q").err == ""
    document = json.loads(program.run("env", "dev", "--json", "-q").out)
    assert document["OPENAI_MODEL"] == "dev"
    program.run("launch", "dev", *SIMULATED, "-q")
    assert program.run("env", "dev").err == ""


@pytest.mark.parametrize("where", ["api_key_env: MY_KEY", "api_key_file: key"])
def test_env_leads_to_a_gateways_key_and_does_not_print_it(program: Program, where: str) -> None:
    with program.catalog.open("a", encoding="utf-8") as catalog:
        catalog.write(f"gateway: {{{where}}}\n")
    (program.catalog.parent / "key").write_text("a-secret\n")
    program.env["MY_KEY"] = "a-secret"
    printed = program.run("env", "dev", "-q").out
    assert "a-secret" not in printed
    assert said_by_a_shell(program, f'{printed}\necho "$OPENAI_API_KEY"') == "a-secret\n"
    assert json.loads(program.run("env", "dev", "--json", "-q").out)["OPENAI_API_KEY"] == "a-secret"


def test_logs_in_every_form(program: Program) -> None:
    program.run("launch", "dev", *SIMULATED, "-q")
    lines = program.run("logs", "dev").out.splitlines()
    assert any("vLLM" in line for line in lines)
    assert program.run("logs", "dev", "--tail", "2").out.splitlines() == lines[-2:]
    assert program.run("logs", "dev", "--tail", "all").out.splitlines() == lines
    assert program.run("logs", "dev", "--tail", "0").out == ""
    assert program.run("logs", "dev", "--since", "1h").out.splitlines() == lines
    assert program.run("logs", "dev", "--since", "2999-01-01").out == ""
    stamped = program.run("logs", "dev", "-t", "--tail", "1").out
    assert datetime.fromisoformat(stamped.split(" ", 1)[0]).tzinfo is not None
    assert stamped.rstrip("\n").split(" ", 1)[1] == lines[-1]
    documents = [json.loads(line) for line in program.run("logs", "dev", "--json").out.splitlines()]
    assert [document["text"] for document in documents] == lines
    assert all(set(document) == {"at", "text"} for document in documents)


def test_ctrl_c_ends_following_a_log_quietly(program: Program) -> None:
    program.run("launch", "dev", *SIMULATED, "-q")
    with program.start("logs", "dev", "-f") as following:
        assert following.stdout is not None
        assert following.stdout.readline()
        following.send_signal(signal.SIGINT)
        _, err = following.communicate(timeout=20)
    assert (following.returncode, err) == (130, "")


def test_a_log_is_followed_to_the_engines_end(program: Program) -> None:
    program.run("launch", "dev", *SIMULATED, "-q")
    with program.start("logs", "dev", "-f") as following:
        assert following.stdout is not None
        assert following.stdout.readline()
        program.run("stop", "-q")
        out, err = following.communicate(timeout=20)
    assert (following.returncode, err) == (0, "")
    assert "shutdown" in out.lower()


def test_a_terminal_shows_the_swap_and_then_the_result(program: Program) -> None:
    with program.terminal("launch", "dev", *SIMULATED) as terminal:
        assert terminal.wait() == 0
        text = re.sub(r"\d+(\.\d)? s\b", "N s", "\n".join(terminal.lines))
        assert not terminal.screen.cursor.hidden
    assert text.splitlines() == [
        "✓ starting dev  N s",
        "simulated engine: it generates text, there is no model",
        "✓ loading dev  N s",
        "✓ asking dev for a first word  N s",
        "dev is ready after N s",
        f"  address   http://localhost:{program.ports['dev']}/v1",
        "  model     tiny",
        "  engine    simulated (process): its text is generated, there is no model",
        "  card      SIM-0",
        "",
        "  agent-manager chat dev",
        '  eval "$(agent-manager env dev)"',
    ]
    with program.terminal("status") as terminal:
        assert terminal.wait() == 0
        assert b"\x1b[32mready" in terminal.raw
        assert any(re.match(r"dev +ready +\d+ s ago +simulated +tiny", line) for line in terminal.lines)


@pytest.fixture
def slow(tmp_path: Path, free_port: FreePort) -> Program:
    return make_program(tmp_path, free_port, load_seconds=30.0)


def test_ctrl_c_while_loading_undoes_and_says_so(slow: Program) -> None:
    with slow.terminal("launch", "dev", *SIMULATED) as terminal:
        terminal.until(lambda lines: any("loading dev" in line for line in lines))
        terminal.interrupt()
        assert terminal.wait() == 130
        assert any("interrupted" in line for line in terminal.lines)
        assert "Traceback" not in "\n".join(terminal.lines)
        assert not terminal.screen.cursor.hidden
    assert states(slow) == {"dev": "absent", "po": "absent"}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_while_loading_undoes_too(slow: Program, number: signal.Signals) -> None:
    with slow.start("launch", "dev", *SIMULATED) as launching:
        assert launching.stderr is not None
        while "loading dev" not in launching.stderr.readline():
            pass
        launching.send_signal(number)
        out, err = launching.communicate(timeout=20)
    assert (launching.returncode, out) == (130, "")
    assert "interrupted" in err
    assert states(slow) == {"dev": "absent", "po": "absent"}


def test_a_terminal_that_is_closed_while_loading_leaves_nothing(slow: Program) -> None:
    with slow.terminal("launch", "dev", *SIMULATED) as terminal:
        terminal.until(lambda lines: any("loading dev" in line for line in lines))
        terminal.hang_up()
        assert terminal.process.wait(20) == 130
    assert states(slow) == {"dev": "absent", "po": "absent"}
