"""`doctor`: what is known of a host becomes findings, each with its evidence and what to type. Pure.

The facts (facts.py) are read elsewhere. The rules are in rules_*.py, one file for each part of a host; here they
are put in order.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from msgspec import Struct

from agent_manager.diagnosis.finding import Finding, State
from agent_manager.diagnosis.rules_card import judge_card
from agent_manager.diagnosis.rules_docker import judge_docker, judge_docker_disk
from agent_manager.diagnosis.rules_host import judge_host
from agent_manager.diagnosis.rules_leftovers import judge_leftovers, judge_ports
from agent_manager.diagnosis.rules_models import judge_hub, judge_models

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from agent_manager.diagnosis.facts import HostFacts

    Rule = Callable[[HostFacts], Iterator[Finding]]

_GROUPS: Final[tuple[tuple[str, tuple[Rule, ...]], ...]] = (
    ("Host", (judge_host,)),
    ("Docker", (judge_docker,)),
    ("Card", (judge_card,)),
    ("Disk", (judge_models, judge_docker_disk)),
    ("Hub", (judge_hub,)),
    ("Ports", (judge_ports,)),
    ("Leftovers", (judge_leftovers,)),
)


class Group(Struct, frozen=True, kw_only=True):
    """A part of the host and what was found there, in the order it was looked at."""

    name: str
    findings: tuple[Finding, ...]


class Report(Struct, frozen=True, kw_only=True):
    """All that was found. `purpose` is what the host was looked at for, such as `vllm in containers`."""

    purpose: str
    groups: tuple[Group, ...]

    @property
    def findings(self) -> tuple[Finding, ...]:
        """Those of all groups."""
        return tuple(finding for group in self.groups for finding in group.findings)

    @property
    def ready(self) -> bool:
        """Whether nothing blocks."""
        return not self.count(State.BLOCKED)

    def count(self, state: State) -> int:
        """How many findings are in a state."""
        return sum(finding.state is state for finding in self.findings)


def judge(facts: HostFacts) -> Report:
    """What the facts mean for the engine and the runtime that are wanted."""
    wanted = facts.wanted
    where = "in containers" if wanted.needs_docker else "as a process of this host"
    groups = (
        Group(name=name, findings=tuple(finding for rule in rules for finding in rule(facts)))
        for name, rules in _GROUPS
    )
    return Report(
        purpose=f"{wanted.engine} {where}", groups=tuple(group for group in groups if group.findings)
    )
