"""Who owns a card: one at a time, told to others, and nobody once the owner is dead."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from typing import TYPE_CHECKING

import pytest
from msgspec import to_builtins

from agent_manager.errors import CardBusy, StateUnusable
from agent_manager.runtimes import proc
from agent_manager.swap.lock import own_card, read_owner
from agent_manager.swap.notices import Owner

if TYPE_CHECKING:
    from pathlib import Path

    from agent_manager.state import StateDir

CARD = "SIM-0"
HOLDER = """
import asyncio, sys
from pathlib import Path
from agent_manager.state import StateDir
from agent_manager.swap.lock import own_card
async def hold():
    async with own_card(StateDir(Path(sys.argv[1])), "SIM-0", verb="launch dev") as lock:
        lock.tell("loading", "dev")
        print("held", flush=True)
        await asyncio.sleep(600)
asyncio.run(hold())
"""


def _owner_file(state: StateDir) -> Path:
    return state.card(CARD) / "owner.json"


def _write_owner(state: StateDir, *, pid: int | None = None, **changes: object) -> None:
    me = proc.identify(os.getpid())
    assert me is not None
    owner = Owner(pid=pid or me.pid, kind="operation", verb="stop")
    state.card(CARD).mkdir(parents=True, exist_ok=True)
    _owner_file(state).write_text(
        json.dumps({"owner": to_builtins(owner), "start_ticks": me.started_ticks, **changes})
    )


async def test_the_owner_is_told_to_others(state: StateDir) -> None:
    assert read_owner(state, CARD) is None
    async with own_card(state, CARD, verb="launch dev") as lock:
        owner = read_owner(state, CARD)
        assert owner is not None
        assert (owner.pid, owner.kind, owner.verb) == (os.getpid(), "operation", "launch dev")
        assert (owner.step, owner.agent) == (None, None)
        lock.tell("draining", "po")
        owner = read_owner(state, CARD)
        assert owner is not None
        assert (owner.step, owner.agent) == ("draining", "po")
    assert read_owner(state, CARD) is None
    assert not _owner_file(state).exists()


async def test_a_second_owner_is_refused_and_told_who_has_it(state: StateDir) -> None:
    async with own_card(state, CARD, verb="launch dev"):
        with pytest.raises(
            CardBusy, match=rf"card SIM-0 is owned by 'launch dev' \(pid {os.getpid()}\)"
        ) as raised:
            async with own_card(state, CARD, verb="stop"):
                pytest.fail("two owners")
        assert raised.value.exit_code == 6
        assert "--wait" in str(raised.value.hint)
        owner = read_owner(state, CARD)
        assert owner is not None
        assert owner.verb == "launch dev"


async def test_cards_do_not_know_each_other(state: StateDir) -> None:
    async with own_card(state, CARD, verb="launch dev"), own_card(state, "CPU-0", verb="launch po"):
        assert read_owner(state, "CPU-0") is not None


async def test_one_that_waits_gets_it_next(state: StateDir) -> None:
    got = asyncio.Event()

    async def wait() -> None:
        async with own_card(state, CARD, verb="stop", wait_s=60):
            got.set()

    async with own_card(state, CARD, verb="launch dev"):
        waiter = asyncio.create_task(wait())
        await asyncio.wait((waiter,), timeout=0.3)
        assert not got.is_set()
    await waiter
    assert got.is_set()


async def test_waiting_ends_in_being_refused(state: StateDir) -> None:
    async with own_card(state, CARD, verb="launch dev"):
        with pytest.raises(CardBusy, match="launch dev"):
            async with own_card(state, CARD, verb="stop", wait_s=0.2):
                pytest.fail("two owners")


async def test_a_wait_that_is_cancelled_leaves_nothing(state: StateDir) -> None:
    async with own_card(state, CARD, verb="launch dev"):
        descriptors = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - one number
        waiter = asyncio.create_task(_own_and_release(state))
        await asyncio.wait((waiter,), timeout=0.2)
        waiter.cancel()
        await asyncio.gather(waiter, return_exceptions=True)
        assert len(os.listdir("/proc/self/fd")) == descriptors  # noqa: PTH208 - one number
    await _own_and_release(state)


async def test_an_error_inside_gives_the_card_back(state: StateDir) -> None:
    with pytest.raises(ZeroDivisionError):
        async with own_card(state, CARD, verb="launch dev"):
            raise ZeroDivisionError
    assert read_owner(state, CARD) is None
    await _own_and_release(state)


async def test_the_kernel_takes_it_from_a_dead_owner(state: StateDir) -> None:
    holder = await asyncio.create_subprocess_exec(
        sys.executable, "-c", HOLDER, str(state.root), stdout=asyncio.subprocess.PIPE
    )
    assert holder.stdout is not None
    await holder.stdout.readline()
    owner = read_owner(state, CARD)
    assert owner is not None
    assert (owner.pid, owner.step) == (holder.pid, "loading")
    with pytest.raises(CardBusy, match=f"pid {holder.pid}"):
        await _own_and_release(state)
    holder.kill()
    await holder.wait()
    assert _owner_file(state).exists()
    assert read_owner(state, CARD) is None
    await _own_and_release(state)


async def test_an_owner_that_said_nothing_yet_is_another_process(state: StateDir) -> None:
    async with own_card(state, CARD, verb="launch dev"):
        _owner_file(state).unlink()
        with pytest.raises(CardBusy, match="owned by another process"):
            await _own_and_release(state)


class TestReadingAnOwner:
    def test_a_pid_that_was_reused_is_nobody(self, state: StateDir) -> None:
        me = proc.identify(os.getpid())
        assert me is not None
        _write_owner(state)
        assert read_owner(state, CARD) is not None
        _write_owner(state, start_ticks=me.started_ticks - 1)
        assert read_owner(state, CARD) is None

    @pytest.mark.parametrize("ticks", [1, None, "1"])
    def test_a_pid_that_is_gone_is_nobody(self, state: StateDir, ticks: object) -> None:
        _write_owner(state, pid=2**22 + 1, start_ticks=ticks)  # larger than the kernel's largest
        assert read_owner(state, CARD) is None

    @pytest.mark.parametrize("text", ["", "{", "[]", "7", "{}", '{"pid": "x"}', "\udcff"])
    def test_what_is_no_owner_is_nobody(self, state: StateDir, text: str) -> None:
        state.card(CARD).mkdir(parents=True)
        _owner_file(state).write_text(text, errors="surrogateescape")
        assert read_owner(state, CARD) is None

    def test_it_neither_locks_nor_writes(self, state: StateDir) -> None:
        _write_owner(state, pid=2**22 + 1)
        before = sorted(state.root.rglob("*"))
        assert read_owner(state, CARD) is None
        assert sorted(state.root.rglob("*")) == before

    async def test_it_does_not_wait_for_the_owner(self, state: StateDir) -> None:
        async with own_card(state, CARD, verb="launch dev"):
            assert read_owner(state, CARD) is not None


class TestABrokenFolder:
    async def test_a_file_where_the_folder_should_be(self, state: StateDir) -> None:
        state.cards.mkdir(parents=True)
        state.card(CARD).write_text("")
        with pytest.raises(StateUnusable, match=str(state.card(CARD))) as raised:
            await _own_and_release(state)
        assert raised.value.exit_code == 4

    async def test_a_folder_where_the_lock_should_be(self, state: StateDir) -> None:
        (state.card(CARD) / "lock").mkdir(parents=True)
        with pytest.raises(StateUnusable, match="lock"):
            await _own_and_release(state)

    async def test_a_folder_where_the_owner_should_be(self, state: StateDir) -> None:
        _owner_file(state).mkdir(parents=True)
        with pytest.raises(StateUnusable):
            await _own_and_release(state)
        async with own_card(state, CARD, verb="stop", unannounced=True) as lock:
            with pytest.raises(OSError, match=r"owner\.json"):
                lock.tell("stopping", "po")
            with pytest.raises(CardBusy, match="another process"):
                await _own_and_release(state)
        _owner_file(state).rmdir()
        await _own_and_release(state)


async def _own_and_release(state: StateDir) -> None:
    async with own_card(state, CARD, verb="stop"):
        pass
