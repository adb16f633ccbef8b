"""A keeper to begin with, on engines in memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import uvloop

from tests.swap.engines import ServingRuntime

from .keeping import keeping

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop
    from collections.abc import AsyncIterator, Callable, Mapping

    from agent_manager.state import StateDir
    from tests.conftest import FreePort

    from .keeping import Begin


def pytest_asyncio_loop_factories() -> Mapping[str, Callable[[], AbstractEventLoop]]:
    """These run on the loop that the gateway runs on."""
    return {"uvloop": uvloop.new_event_loop}


@pytest.fixture
async def runtime() -> AsyncIterator[ServingRuntime]:
    made = ServingRuntime()
    yield made
    await made.close()


@pytest.fixture
def agent_ports(free_port: FreePort) -> Mapping[str, int]:
    return {"po": free_port(), "dev": free_port()}


@pytest.fixture
def begin(state: StateDir, runtime: ServingRuntime, agent_ports: Mapping[str, int]) -> Begin:
    """Starts a keeper; what it takes is said at `keeping`."""
    return lambda **more: keeping(state, runtime, agent_ports, **more)
