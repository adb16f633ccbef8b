"""Many clients for a while, agents that swap every few seconds: nothing lost, hung, answered twice or by another."""

from __future__ import annotations

import asyncio
import random
import signal
import time
from typing import TYPE_CHECKING

import pytest

from tests.faults.gateway import ANSWERED

if TYPE_CHECKING:
    from tests.faults.gateway import Gate

AGENTS = ("po", "dev")


async def client(gate: Gate, dice: random.Random, until_s: float) -> int:
    """Ask one thing after another, and now and then leave before the answer; how often it left."""
    left = 0
    while time.monotonic() < until_s:
        agent = dice.choice(AGENTS)
        asked = asyncio.create_task(
            gate.ask(
                agent,
                tokens=dice.randint(1, 30),
                stream=dice.random() < 0.5,
                door=dice.choice((None, agent)),
                words="hello " * dice.randint(1, 200),
            )
        )
        if dice.random() < 0.05:
            await asyncio.wait((asked,), timeout=dice.random())
            left += asked.cancel()
            await asyncio.gather(asked, return_exceptions=True)
        else:
            await asked
        await asyncio.sleep(dice.random())
    return left


async def soak(gate: Gate, *, clients: int, seconds: float) -> None:
    await gate.open(load_s=0.5, first_token_ms=5, inter_token_ms=5, max_wait="2s", sequences=64)
    until_s = time.monotonic() + seconds
    left = await asyncio.gather(*(client(gate, random.Random(n), until_s) for n in range(clients)))  # noqa: S311 - no secret
    swaps = await gate.swaps()
    print(f"\n{gate.score.total()} requests, {sum(left)} left early, swaps {swaps}")  # noqa: T201 - seen with -s
    assert set(gate.score) == {ANSWERED}, gate.score
    assert gate.score[ANSWERED] >= clients
    assert set(swaps) == {("po", "done"), ("dev", "done")}
    assert abs(swaps["po", "done"] - swaps["dev", "done"]) <= 1
    assert sum(swaps.values()) >= 3
    await gate.until_idle(*AGENTS)
    assert gate.process is not None
    gate.process.send_signal(signal.SIGTERM)
    await gate.end()
    assert gate.lab.engines() == {}


@pytest.mark.timeout(180)
async def test_a_hundred_clients_for_half_a_minute(gate: Gate) -> None:
    await soak(gate, clients=100, seconds=30)


@pytest.mark.soak
@pytest.mark.timeout(900)
async def test_five_hundred_clients_for_ten_minutes(gate: Gate) -> None:
    await soak(gate, clients=500, seconds=600)
