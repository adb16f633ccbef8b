"""A use case on its event loop, and the signals it is told of."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys

import pytest

from agent_manager.cli.runner import SIGNALS, run
from agent_manager.errors import Interrupted, NotRunning
from agent_manager.swap.host import Interrupts


def test_it_returns_what_the_use_case_returns() -> None:
    async def use_case() -> int:
        await asyncio.sleep(0)
        return 42

    assert run(use_case(), Interrupts()) == 42


def test_it_raises_what_the_use_case_raises() -> None:
    async def use_case() -> None:
        raise NotRunning("no")

    with pytest.raises(NotRunning):
        run(use_case(), Interrupts())


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_cancels_when_nobody_listens(number: signal.Signals) -> None:
    cleaned = []

    async def use_case() -> None:
        os.kill(os.getpid(), number)
        try:
            await asyncio.sleep(60)
        finally:
            cleaned.append(True)

    with pytest.raises(Interrupted):
        run(use_case(), Interrupts())
    assert cleaned == [True]


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_is_for_who_listens(number: signal.Signals) -> None:
    interrupts = Interrupts()

    async def use_case() -> str:
        heard = asyncio.Event()
        interrupts.subscribe(heard.set)
        os.kill(os.getpid(), number)
        await heard.wait()
        return "undone"

    assert run(use_case(), interrupts) == "undone"


def test_the_handlers_are_given_back() -> None:
    before = [signal.getsignal(number) for number in SIGNALS]
    run(asyncio.sleep(0), Interrupts())
    assert [signal.getsignal(number) for number in SIGNALS] == before


def test_what_was_ignored_stays_ignored() -> None:
    script = (
        "import asyncio, os, signal\n"
        "from agent_manager.cli.runner import run\nfrom agent_manager.swap.host import Interrupts\n"
        "signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
        "async def use_case():\n os.kill(os.getpid(), signal.SIGHUP)\n await asyncio.sleep(0.05)\n return 'went on'\n"
        "print(run(use_case(), Interrupts()))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "went on\n"
