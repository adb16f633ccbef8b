"""What the shell offers after a tab."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.cli.program import Program


def offered(program: Program, line: str) -> list[str]:
    words = line.split(" ")
    env = {
        "_AGENT_MANAGER_COMPLETE": "complete_bash",
        "COMP_WORDS": line,
        "COMP_CWORD": str(len(words) - 1),
    }
    done = program.run(env=env)
    assert (done.code, done.err) == (0, "")
    return done.out.split()


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("agent-manager l", ["launch", "logs"]),
        ("agent-manager launch ", ["dev", "po"]),
        ("agent-manager launch d", ["dev"]),
        ("agent-manager --json launch d", ["dev"]),
        ("agent-manager restart p", ["po"]),
        ("agent-manager chat p", ["po"]),
        ("agent-manager stop dev p", ["po"]),
        ("agent-manager --engine s", ["simulated"]),
        ("agent-manager launch dev --engine v", ["vllm", "vllm-cpu"]),
        ("agent-manager launch dev --runtime ", ["docker", "process"]),
        ("agent-manager status --profile ", ["smaller"]),
        ("agent-manager launch --dr", ["--drain-timeout", "--dry-run"]),
        ("agent-manager launch --js", ["--json"]),
    ],
)
def test_verbs_agents_options_and_their_values(program: Program, line: str, expected: list[str]) -> None:
    assert sorted(offered(program, line)) == expected


def test_the_catalog_on_the_line_is_the_one_that_counts(program: Program) -> None:
    other = program.folder / "other.yaml"
    other.write_text(program.catalog.read_text().replace("  po:", "  pilot:").replace("po: {", "pilot: {"))
    assert offered(program, f"agent-manager launch --catalog {other} p") == ["pilot"]


def test_a_broken_catalog_offers_nothing_and_says_nothing(program: Program) -> None:
    program.catalog.write_text("agents: [")
    assert offered(program, "agent-manager launch ") == []


def test_the_script_for_a_shell_is_shown(program: Program) -> None:
    done = program.run(
        "--show-completion", env={"SHELL": "/bin/bash", "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
    )
    assert done.code == 2  # without detection the shell is an argument
    done = program.run("--show-completion", "bash", env={"_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"})
    assert (done.code, done.err) == (0, "")
    assert "_AGENT_MANAGER_COMPLETE=complete_bash" in done.out
