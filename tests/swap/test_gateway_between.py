"""What a person types while a gateway starts or ends: it owns the card, and nobody answers for it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from agent_manager.errors import CardBusy
from agent_manager.gpu.simulated import CARD_ID
from agent_manager.swap import operations
from agent_manager.swap.lock import GATEWAY, own_card

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager

    from agent_manager.swap.lock import CardLock

    from .conftest import Lab
    from .engines import ServingRuntime

LONG_S = 60.0


def silent_gateway(lab: Lab) -> AbstractAsyncContextManager[CardLock]:
    return own_card(lab.state, CARD_ID, verb="serve", kind=GATEWAY)


@pytest.mark.parametrize(("patience_s", "wait_s"), [(LONG_S, 0.0), (0.0, LONG_S)])
async def test_one_that_ends_is_waited_for(
    quick: Lab, engines: ServingRuntime, monkeypatch: pytest.MonkeyPatch, patience_s: float, wait_s: float
) -> None:
    monkeypatch.setattr(operations, "GATEWAY_PATIENCE_S", patience_s)
    async with silent_gateway(quick):
        launch = asyncio.create_task(quick.launch("dev", wait_s=wait_s))
        await asyncio.wait((launch,), timeout=0.3)
        assert not launch.done()
    assert (await launch).agent == "dev"
    async with silent_gateway(quick):
        stop = asyncio.create_task(quick.stop("dev", wait_s=wait_s))
        await asyncio.wait((stop,), timeout=0.3)
        assert not stop.done()
    assert (await stop).stopped == ("dev",)
    assert await engines.running() == []


async def test_one_that_neither_answers_nor_ends_is_told(
    quick: Lab, engines: ServingRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(operations, "GATEWAY_PATIENCE_S", 0.2)
    await quick.launch("po")
    async with silent_gateway(quick):
        with pytest.raises(CardBusy, match="that is starting or ending"):
            await quick.launch("dev")
        with pytest.raises(CardBusy, match="that is starting or ending"):
            await quick.stop("po", wait_s=0.1)
    assert await engines.running() == ["po"]
