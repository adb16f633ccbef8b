"""What is in the way: ports that others have, and what earlier runs left. Facts in, findings out. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from agent_manager.diagnosis.facts import Trouble
from agent_manager.diagnosis.finding import blocked, listed, ok, warning

if TYPE_CHECKING:
    from collections.abc import Iterator

    from agent_manager.diagnosis.facts import HostFacts, LostEngine
    from agent_manager.diagnosis.finding import Finding


def judge_ports(facts: HostFacts) -> Iterator[Finding]:
    """Whether the agents can listen where their clients look for them."""
    if isinstance(facts.ports, Trouble):
        yield warning("ports", f"not looked at: {facts.ports.message}")
        return
    taken = [each for each in facts.ports if each.holder is not None and not each.ours]
    for port in taken:
        who = f"container {port.container}" if port.container else port.holder
        if port.container:
            remedy = f"docker stop {port.container}"
        elif port.pid is not None:
            remedy = f"kill {port.pid}"
        else:
            remedy = f"sudo ss -ltnp 'sport = :{port.port}'"
        evidence = f"port {port.port}, which {port.agent} needs, is in use by {who}"
        yield blocked("ports", evidence, f"{remedy}  # or another port for {port.agent} in the catalog")
    free = [each.port for each in facts.ports if each.holder is None]
    used = sorted({each.agent for each in facts.ports if each.ours})
    said = [f"{_ranges(free)} free"] if free else []
    said += [f"those of {listed(used)} used by its own engine"] if used else []
    if said:
        yield ok("ports", "; ".join(said))


def _ranges(numbers: list[int]) -> str:
    """`8000-8002, 8100`."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def judge_leftovers(facts: HostFacts) -> Iterator[Finding]:
    """What earlier runs left that nobody else would find, or that takes room."""
    yield from _orphans(facts)
    left = facts.leftovers
    if isinstance(left, Trouble):
        yield warning("leftovers", f"not looked at: {left.message}")
        return
    for engine in left.lost:
        yield _lost(engine)
    if left.ended:
        evidence = f"ended by itself and still listed: {listed(left.ended)}"
        yield warning("ended", evidence, f"agent-manager logs {left.ended[0]}; agent-manager stop --all")
    said = []
    if left.kept_logs:
        said.append(f"{_counted(left.kept_logs, 'kept log')}, {left.kept_logs_bytes / 10**6:.1f} MB")
    if left.harmless:
        said.append(f"{_counted(left.harmless, 'stale file')}, cleared by the next launch")
    yield ok("leftovers", "; ".join(said) or "none")


def _counted(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _lost(engine: LostEngine) -> Finding:
    """An engine behind a broken record holds the card, and no other verb can tell."""
    pids = ", ".join(map(str, engine.pids))
    record = f"its record {engine.folder} cannot be read" if engine.folder else "its record is gone"
    if not engine.pids:
        evidence = f"instance {engine.instance}: {record}; nothing of it runs"
        return warning("lost-engine", evidence, f"rm -r {engine.folder}")
    evidence = f"instance {engine.instance} runs (pid {pids}), unseen by status and stop: {record}"
    kill = f"kill -9 {pids.replace(',', '')}"
    return blocked("lost-engine", evidence, f"{kill}; rm -r {engine.folder}" if engine.folder else kill)


def _orphans(facts: HostFacts) -> Iterator[Finding]:
    docker = facts.docker
    for orphan in () if isinstance(docker, Trouble) else docker.orphans:
        runs = "runs" if orphan.running else "does not run"
        evidence = f"container {orphan.name} {orphan.why} ({runs})"
        yield warning("containers", evidence, f"docker rm -f {orphan.name}")
