"""The gateway where things go wrong: engines killed and hanging, clients that leave, itself killed. Real processes.

Nobody may lose a request by it but who was in the middle of a stream whose engine died.
"""

from __future__ import annotations

import asyncio
import os
import signal
from typing import TYPE_CHECKING

import aiohttp
import pytest

from tests.faults.gateway import ANSWERED, REFUSED, until

if TYPE_CHECKING:
    from tests.faults.gateway import Gate


def kill(gate: Gate, agent: str) -> None:
    pids = gate.lab.pids(agent)
    assert pids, f"{agent} has no engine"
    for pid in pids:
        os.kill(pid, signal.SIGKILL)


class TestSwaps:
    async def test_twelve_alternating_requests_sent_at_once_make_two_swaps(self, gate: Gate) -> None:
        await gate.open()
        got = await asyncio.gather(*(gate.ask(("po", "dev")[n % 2]) for n in range(12)))
        assert [each.how for each in got] == [ANSWERED] * 12
        swaps = await gate.swaps()
        assert sum(swaps.values()) <= 2
        assert set(swaps) <= {("po", "done"), ("dev", "done")}

    async def test_forty_mixed_requests_sent_at_once_get_forty_answers(self, gate: Gate) -> None:
        await gate.open(inter_token_ms=2)
        asked = [
            gate.ask(
                ("po", "dev")[(n * 7 // 3) % 2],
                tokens=1 + n % 9,
                stream=n % 3 == 0,
                door=(None, ("po", "dev")[(n * 7 // 3) % 2])[n % 2],
            )
            for n in range(40)
        ]
        await asyncio.gather(*asked)
        assert gate.score == {ANSWERED: 40}

    @pytest.mark.timeout(180)
    async def test_an_unload_that_races_a_request_loses_none(self, gate: Gate) -> None:
        await gate.open(keep_alive="0", load_s=0)
        for number in range(50):
            got = await gate.ask("dev", stream=number % 2 == 0)
            assert got.how == ANSWERED, f"{number}: {got}"
            await asyncio.sleep(0.004 * (number % 10))
        swaps = await gate.swaps()
        assert swaps["", "done"] > 10, "or there was nothing to race"

    async def test_who_asks_sees_what_is_being_done(self, gate: Gate) -> None:
        await gate.open(load_s=3)
        asked = asyncio.create_task(gate.ask("dev"))
        await until(lambda: gate.lab.step == "loading", "dev loads")
        status = await asyncio.to_thread(gate.lab.status)
        assert (status["owner"]["kind"], status["owner"]["agent"]) == ("gateway", "dev")
        assert {each["name"]: each["state"] for each in status["agents"]}["dev"] == "starting"
        assert (await asked).how == ANSWERED
        status = await asyncio.to_thread(gate.lab.status)
        assert (status["owner"]["step"], status["owner"]["agent"]) == (None, None)
        assert {each["name"]: each["state"] for each in status["agents"]}["dev"] == "ready"


class TestAnEngineThatIsKilled:
    async def test_in_the_middle_of_a_stream_says_so_and_the_next_request_works(self, gate: Gate) -> None:
        await gate.open(inter_token_ms=20)
        async with gate.streaming("dev", 1000) as answer:
            kill(gate, "dev")
            rest = (await answer.text()).split("\n\n")
        (error,) = [each for each in rest if '"error"' in each]
        assert '"source": "agent-manager"' in error
        assert not any("[DONE]" in each for each in rest)
        assert (await gate.ask("dev")).how == ANSWERED
        assert (await gate.ask("po")).how == ANSWERED

    async def test_before_it_began_to_answer_is_nothing_a_client_sees(self, gate: Gate) -> None:
        await gate.open(first_token_ms=1000, inter_token_ms=1)
        asked = [asyncio.create_task(gate.ask("dev")) for _ in range(5)]
        await gate.until_ready("dev")
        await until(lambda: _running(gate, 5), "they run")
        kill(gate, "dev")
        for each in await asyncio.gather(*asked):
            assert each.how == ANSWERED, each
        assert (await gate.swaps())["dev", "done"] == 2

    async def test_while_it_loads_only_takes_longer(self, gate: Gate) -> None:
        await gate.open(load_s=2)
        asked = [asyncio.create_task(gate.ask("dev", stream=bool(n))) for n in range(2)]
        await until(lambda: gate.lab.step == "loading" and gate.lab.pids("dev"), "dev loads")
        kill(gate, "dev")
        for each in await asyncio.gather(*asked):
            assert each.how == ANSWERED, each
        assert await gate.swaps() == {("dev", "failed"): 1, ("dev", "done"): 1}

    async def test_while_others_wait_for_the_card_leaves_it_to_them(self, gate: Gate) -> None:
        await gate.open(inter_token_ms=20)
        async with gate.streaming("dev", 1000):
            asked = asyncio.create_task(gate.ask("po"))
            await until(lambda: _waiting(gate, "po"), "po is waited for")
            kill(gate, "dev")
            assert (await asked).how == ANSWERED

    async def test_again_and_again_is_refused_for_a_while_with_the_cause(self, gate: Gate) -> None:
        await gate.open(dev="crash-after:2")  # the completion that proves it ready is the first
        assert (await gate.ask("dev")).how == ANSWERED
        await until(lambda: not gate.lab.pids("dev"), "it crashed")
        assert (await gate.ask("dev")).how == ANSWERED
        await until(lambda: not gate.lab.pids("dev"), "it crashed again")

        async def refused() -> bool:
            got = await gate.ask("dev")
            return got.how == REFUSED and "crash-after:2" in got.text and int(got.headers["Retry-After"]) > 0

        await until(refused, "it is refused")
        assert (await gate.ask("po")).how == ANSWERED


class TestAnEngineThatDoesNotWork:
    @pytest.mark.parametrize(
        ("fault", "words"),
        [("refuse-start", "refuse-start"), ("oom", "out of memory"), ("crash-at-load:40", "crash-at-load")],
    )
    async def test_is_refused_with_the_cause_and_the_other_goes_on(
        self, gate: Gate, fault: str, words: str
    ) -> None:
        await gate.open(dev=fault)
        assert (await gate.ask("po")).how == ANSWERED
        got = await asyncio.gather(*(gate.ask(agent) for agent in ("dev", "po", "dev", "po")))
        assert [each.how for each in got] == [REFUSED, ANSWERED, REFUSED, ANSWERED]
        assert words in got[0].text.lower()
        assert (await gate.ask("po")).how == ANSWERED
        assert (await gate.ask("dev")).status == 503

    async def test_is_ended_when_it_does_not_get_on_and_the_request_is_answered(self, gate: Gate) -> None:
        await gate.open(stall_timeout="1s", first_token_ms=50)
        assert (await gate.ask("dev")).how == ANSWERED
        for pid in (before := gate.lab.pids("dev")):
            os.kill(pid, signal.SIGSTOP)
        got = await gate.ask("dev")
        assert got.how == ANSWERED, got
        assert not before & gate.lab.pids("dev")

    async def test_is_ended_when_it_is_silent_and_nobody_asks(self, gate: Gate) -> None:
        await gate.open(stall_timeout="1s")
        assert (await gate.ask("dev")).how == ANSWERED
        for pid in gate.lab.pids("dev"):
            os.kill(pid, signal.SIGSTOP)
        await until(lambda: not gate.lab.pids("dev"), "it is ended")
        assert (await gate.ask("dev")).how == ANSWERED


class TestAClientThatLeaves:
    async def test_the_queue_leaves_no_trace(self, gate: Gate) -> None:
        await gate.open(load_s=1)
        waiting = [asyncio.create_task(gate.ask("dev", stream=bool(n % 2))) for n in range(6)]
        await until(lambda: _waiting(gate, "dev", 6), "they wait")
        for task in waiting[:5]:
            task.cancel()
        await until(lambda: _waiting(gate, "dev", 1), "one waits")
        assert (await waiting[5]).how == ANSWERED
        await gate.until_idle("dev")

    async def test_the_prompt_is_cancelled_in_the_engine(self, gate: Gate) -> None:
        await gate.open(first_token_ms=3000)
        waiting = [asyncio.create_task(gate.ask("dev", stream=bool(n % 2))) for n in range(4)]
        await gate.until_ready("dev")
        await until(lambda: _running(gate, 4), "they run")
        for task in waiting:
            task.cancel()
        await gate.until_idle("dev")

    async def test_the_stream_is_cancelled_in_the_engine(self, gate: Gate) -> None:
        await gate.open(inter_token_ms=20)
        async with gate.streaming("dev", 3000) as answer:
            answer.close()
            await gate.until_idle("dev")
        assert (await gate.ask("po")).how == ANSWERED


class TestTheGatewayItself:
    async def test_killed_and_started_again_adopts_the_engine(self, gate: Gate) -> None:
        await gate.open(inter_token_ms=20)
        engine = None
        async with gate.streaming("dev", 3000) as answer:
            engine = gate.lab.pids("dev")
            await self._kill(gate)
            with pytest.raises(aiohttp.ClientError):
                await answer.text()
        assert gate.lab.pids("dev") == engine
        await gate.open()
        await gate.until_idle("dev")
        assert (await gate.ask("dev")).how == ANSWERED
        assert gate.lab.pids("dev") == engine
        assert (await gate.ask("po")).how == ANSWERED
        assert gate.lab.agents_running() == ["po"]

    @pytest.mark.parametrize("step", ["draining", "stopping", "loading"])
    async def test_killed_in_a_swap_and_started_again_serves_both(self, gate: Gate, step: str) -> None:
        await gate.open(load_s=1, inter_token_ms=20, po="slow-stop:1", max_wait="1s")
        assert (await gate.ask("po")).how == ANSWERED
        clients = [asyncio.create_task(gate.ask("po", tokens=100))]
        await until(lambda: _running(gate, 1), "it runs")
        clients.append(asyncio.create_task(gate.ask("dev")))
        if step == "draining":  # with others waiting only, po would be kept while it is busy
            await gate.session.post(gate.url("/unload"))
        await until(lambda: gate.lab.step == step, step)
        await self._kill(gate)
        await asyncio.gather(*clients)
        await gate.open()
        got = await asyncio.gather(*(gate.ask(agent) for agent in ("dev", "po")))
        assert [each.how for each in got] == [ANSWERED] * 2
        assert len(gate.lab.agents_running()) == 1

    async def test_told_to_end_lets_streams_finish_and_leaves_nothing(self, gate: Gate) -> None:
        await gate.open(inter_token_ms=20)
        streams = [asyncio.create_task(gate.ask("dev", tokens=100, stream=True)) for _ in range(3)]
        await until(lambda: _running(gate, 3), "they stream")
        assert gate.process is not None
        gate.process.send_signal(signal.SIGTERM)
        assert (await gate.end()).code in (0, 128 + signal.SIGTERM)
        for each in await asyncio.gather(*streams):
            assert each.how == ANSWERED, each
        assert gate.lab.engines() == {}
        gate.lab.settled()

    async def test_told_to_end_refuses_those_who_wait(self, gate: Gate) -> None:
        await gate.open(load_s=20)
        asked = asyncio.create_task(gate.ask("dev"))
        await until(lambda: gate.lab.step == "loading", "dev loads")
        assert gate.process is not None
        gate.process.send_signal(signal.SIGTERM)
        assert (await asked).how == REFUSED
        await gate.end()
        assert gate.lab.engines() == {}
        gate.lab.settled()

    async def _kill(self, gate: Gate) -> None:
        assert gate.process is not None
        gate.process.kill()
        await asyncio.to_thread(gate.process.communicate)


async def _running(gate: Gate, count: int) -> bool:
    return sum(int(each["running"]) for each in (await gate.agents()).values()) >= count


async def _waiting(gate: Gate, agent: str, count: int = 1) -> bool:
    return int((await gate.agents())[agent]["waiting"]) == count
