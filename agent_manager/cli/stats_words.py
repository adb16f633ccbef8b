"""How readings of a card and its agents are written; shared by the live view and the table of `--once`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec import Struct

from agent_manager.cli.output import gib, printable, seconds

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from agent_manager.engines.metrics import Traffic
    from agent_manager.gpu.base import GpuSample, MemoryHolder
    from agent_manager.swap.history import SwapSample
    from agent_manager.swap.stats import AgentSample, StatsSample

DASH = "-"
"""For what is not known."""
NOBODY = "no agent is on the card; agent-manager launch AGENT puts one there"
ONLY_SIMULATED = "simulated: there is no GPU behind it"
TENTHS_BELOW = 10.0
THOUSANDS_FROM = 10_000.0
KIBI = 1024


def percent(value: float | None) -> str:
    """A value of 0-100."""
    return DASH if value is None else f"{value:.0f}%"


def share(value: float | None) -> str:
    """A value of 0-1, as percents."""
    return DASH if value is None else f"{value:.0%}"


def amount(value: float | None, unit: str) -> str:
    """A whole number of something."""
    return DASH if value is None else f"{value:.0f} {unit}"


def size(value_bytes: int | None) -> str:
    """A size in GiB."""
    return DASH if value_bytes is None else gib(value_bytes)


def rate(per_s: float | None) -> str:
    """Tokens per second, in at most five characters up to a million."""
    if per_s is None:
        return DASH
    if per_s >= THOUSANDS_FROM:
        return f"{per_s / 1000:.1f}k"
    return f"{per_s:.1f}" if 0 < per_s < TENTHS_BELOW else f"{per_s:.0f}"


def latency(duration_s: float | None) -> str:
    """A short time: `4.2 ms`, `61 ms`, `1.25 s`, `12.5 s`."""
    if duration_s is None:
        return DASH
    if duration_s < 1:
        milliseconds = duration_s * 1000
        return f"{milliseconds:.1f} ms" if milliseconds < TENTHS_BELOW else f"{milliseconds:.0f} ms"
    return f"{duration_s:.2f} s" if duration_s < TENTHS_BELOW else f"{duration_s:.1f} s"


def context(agent: AgentSample) -> str:
    """How many requests of the full context fit at once, and that context in tokens: `4.2 × 32k`."""
    if agent.context is None:
        return DASH
    tokens = f"{agent.context // KIBI}k" if agent.context % KIBI == 0 else str(agent.context)
    return tokens if agent.concurrency is None else f"{agent.concurrency:.1f} × {tokens}"


def phase(agent: AgentSample) -> str:
    """What a loading agent is at, `loading weights 60%`; empty for one that does not load."""
    if agent.phase is None:
        return ""
    return agent.phase if agent.phase_percent is None else f"{agent.phase} {agent.phase_percent}%"


def held(agent: AgentSample) -> str:
    """The memory of the card that it holds, or was given where the driver does not say."""
    if agent.used_bytes is None and agent.claim_bytes is not None:
        return f"{gib(agent.claim_bytes)} claimed"
    return size(agent.used_bytes)


def card(sample: StatsSample) -> str:
    """The card's name."""
    return printable(sample.gpu.name) if sample.gpu else "no card can be read"


def readings(gpu: GpuSample) -> tuple[str, ...]:
    """What the card says besides its memory, each with its name; a dash for what it does not tell."""
    power = amount(gpu.power_w, "W")
    if gpu.power_w is not None and gpu.power_limit_w is not None:
        power = f"{gpu.power_w:.0f} of {gpu.power_limit_w:.0f} W"
    state = DASH if gpu.performance_state is None else f"P{gpu.performance_state}"
    return (
        f"GPU {percent(gpu.utilization_pct)}",
        f"memory bus {percent(gpu.memory_utilization_pct)}",
        f"power {power}",
        f"temperature {amount(gpu.temperature_c, '°C')}",
        f"fan {percent(gpu.fan_pct)}",
        f"state {state}",
        f"clock {amount(gpu.sm_clock_mhz, 'MHz')}",
        f"memory clock {amount(gpu.memory_clock_mhz, 'MHz')}",
        throttling(gpu),
    )


def throttling(gpu: GpuSample) -> str:
    """Why the clocks are lower than they could be."""
    if gpu.throttle_reasons is None:
        return f"throttled {DASH}"
    return f"throttled: {', '.join(gpu.throttle_reasons)}" if gpu.throttle_reasons else "not throttled"


def swap(done: SwapSample, now: datetime, arrow: str = "→") -> tuple[str, str, str]:
    """When, what and how long: `14:02:11`, `po → dev`, `47 s`. Another day has its date."""
    at = done.at.astimezone()
    when = at.strftime("%H:%M:%S" if at.date() == now.astimezone().date() else "%b %d %H:%M")
    return when, f"{done.left or 'empty card'} {arrow} {done.arrived}", seconds(done.seconds)


def others(sample: StatsSample) -> list[MemoryHolder]:
    """The processes on the card that are no agent's, the largest first."""
    ours = {pid for agent in sample.agents for pid in agent.pids}
    found = [each for each in sample.gpu.processes if each.pid not in ours] if sample.gpu else []
    return sorted(found, key=lambda each: -(each.used_bytes or 0))


class Column(Struct, frozen=True):
    """One thing to say of an agent: `width` cells, numbers to the right; shown from a screen `from_width` wide."""

    header: str
    width: int
    text: Callable[[AgentSample], str]
    right: bool = True
    from_width: int = 0


def _of(value: Callable[[Traffic], str]) -> Callable[[AgentSample], str]:
    return lambda agent: DASH if agent.traffic is None else value(agent.traffic)


COLUMNS = (
    Column("AGENT", 10, lambda agent: agent.names, right=False),
    Column("STATE", 8, lambda agent: agent.state.value, right=False),
    Column("RUN", 3, _of(lambda traffic: str(traffic.running))),
    Column("WAIT", 4, _of(lambda traffic: str(traffic.waiting))),
    Column("IN/S", 5, _of(lambda traffic: rate(traffic.prompt_tokens_per_s))),
    Column("OUT/S", 5, _of(lambda traffic: rate(traffic.generation_tokens_per_s))),
    Column("TTFT", 7, _of(lambda traffic: latency(traffic.time_to_first_token_s))),
    Column("ITL", 7, _of(lambda traffic: latency(traffic.inter_token_latency_s))),
    Column("KV", 4, _of(lambda traffic: share(traffic.kv_cache_usage))),
    Column("PREFIX", 6, _of(lambda traffic: share(traffic.prefix_cache_hit_rate))),
    Column("CONTEXT", 10, context),
    Column("MEMORY", 17, held, from_width=100),
    Column("PORT", 5, lambda agent: str(agent.port), from_width=106),
    Column("ENGINE", 9, lambda agent: agent.engine, right=False, from_width=132),
    Column("RUNTIME", 7, lambda agent: agent.runtime, right=False, from_width=132),
    Column("MODEL", 32, lambda agent: printable(agent.model), right=False, from_width=160),
)
"""IN and OUT are tokens of prompts and of answers per second, TTFT is the time to the first token, ITL that between
tokens (medians), KV and PREFIX are the shares of the KV cache in use and of prompt tokens found in it."""


def columns(width: int) -> list[Column]:
    """Those that are shown on a screen of that width."""
    return [column for column in COLUMNS if column.from_width <= width]


def fitted(column: Column, text: str) -> str:
    """The text in exactly the cells of its column."""
    cut = text if len(text) <= column.width else text[: column.width - 1] + "…"
    return cut.rjust(column.width) if column.right else cut.ljust(column.width)
