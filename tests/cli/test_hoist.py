"""Global options before and after the verb."""

from __future__ import annotations

import pytest

from agent_manager.cli.hoist import NOTHING, Known, hoist
from agent_manager.errors import UsageError

EVERYWHERE = Known(
    flags=frozenset({"--json", "-q", "--quiet", "-v", "--verbose"}),
    valued=frozenset({"--engine", "--catalog"}),
)
VERBS = {
    "launch": Known(flags=frozenset({"--dry-run"}), valued=frozenset({"--wait"})),
    "logs": Known(flags=frozenset({"-f", "--follow"}), valued=frozenset({"--tail", "-n"})),
    "chat": Known(valued=frozenset({"--system"})),
}


def hoisted(line: str) -> str:
    return " ".join(hoist(line.split(), everywhere=EVERYWHERE, of_verb=lambda verb: VERBS.get(verb, NOTHING)))


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("launch dev", "launch dev"),
        ("--json launch dev", "--json launch dev"),
        ("launch --json dev", "--json launch dev"),
        ("launch dev --json", "--json launch dev"),
        ("launch dev --engine simulated", "--engine simulated launch dev"),
        ("launch --engine=simulated dev", "--engine=simulated launch dev"),
        ("--engine launch launch dev", "--engine launch launch dev"),
        ("launch dev --engine simulated --json --wait 3", "--engine simulated --json launch dev --wait 3"),
        ("launch dev --wait --json", "launch dev --wait --json"),
        ("launch dev --wait=3 --json", "--json launch dev --wait=3"),
        ("chat dev --system --json hi", "chat dev --system --json hi"),
        ("chat dev -- --json", "chat dev -- --json"),
        ("chat --json dev -- -q", "--json chat dev -- -q"),
        ("logs dev -qv", "-q -v logs dev"),
        ("logs dev -fq", "-q logs dev -f"),
        ("logs dev -qfn 5", "-q logs dev -fn 5"),
        ("logs dev -n5q", "logs dev -n5q"),
        ("logs dev -x", "logs dev -x"),
        ("logs -", "logs -"),
        ("launch dev --unknown", "launch dev --unknown"),
        ("--unknown launch dev", "--unknown launch dev"),
        ("launch dev --help", "launch dev --help"),
        ("nonsense --json", "--json nonsense"),
        ("-- launch --json", "-- launch --json"),
        ("", ""),
    ],
)
def test_global_options_come_first_and_the_rest_keeps_its_order(given: str, expected: str) -> None:
    assert hoisted(given) == expected


def test_a_global_option_without_its_value_does_not_take_the_verb_for_it() -> None:
    with pytest.raises(UsageError, match="'--engine' needs a value"):
        hoisted("launch dev --engine")


def test_a_shell_that_completes_a_value_is_not_an_error() -> None:
    arguments = hoist(["launch", "--engine"], everywhere=EVERYWHERE, of_verb=lambda _: NOTHING, strict=False)
    assert arguments == ["launch"]
