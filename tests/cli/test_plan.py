"""plan: what a person and a script are shown, on screens and pipes."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import pytest
from msgspec.structs import replace

from agent_manager.catalog.agents import Agent, Model
from agent_manager.cli import plan_view
from agent_manager.cli.output import Output
from agent_manager.gpu.base import Card, MemoryHolder
from agent_manager.json_text import to_json
from agent_manager.planning.base import Fit
from agent_manager.planning.speed import Speed
from agent_manager.swap.outlook import AgentOutlook, Outlook
from agent_manager.swap.planned_card import CardOrigin, PlannedCard
from tests.checkpoints.loopback_hub import COMMIT, LoopbackHub, serving
from tests.checkpoints.weights import TINY_CONFIG, safetensors
from tests.cli.program import Terminal, argv

if TYPE_CHECKING:
    from tests.cli.conftest import Call
    from tests.cli.program import Program, Result

GIB = 1 << 30
CATALOG = """\
version: 1
models:
  qwen3-14b-awq: {repo: Qwen/Qwen3-14B-AWQ}
  qwen2.5-7b-awq: {repo: Qwen/Qwen2.5-7B-Instruct-AWQ}
  qwen2.5-32b-awq: {repo: Qwen/Qwen2.5-32B-Instruct-AWQ}
  unknown: {repo: Nobody/Knows-It}
agents:
  architect: {model: qwen3-14b-awq, port: 8000, context: 32k, kv_cache_dtype: fp8}
  po: {model: qwen2.5-7b-awq, port: 8002, context: 16k, sequences: 8}
profiles:
  large: {agents: {architect: {model: qwen2.5-32b-awq}}}
  offload-32b:
    agents: {architect: {model: qwen2.5-32b-awq, context: 8k, sequences: 1, cpu_offload: 8GiB, eager: true}}
  obscure: {agents: {po: {model: unknown}}}
"""


@pytest.fixture
def planning(program: Program) -> Program:
    """A catalog for a GPU that is not there, and a Hub that may not be asked."""
    program.catalog.write_text(CATALOG)
    program.env |= {"AGENT_MANAGER_GPU": "GPU-no-such", "HF_HUB_OFFLINE": "1"}
    return program


@pytest.fixture
def plan(planning: Program, call: Call) -> Call:
    """`agent-manager plan` within this process, for that catalog."""
    assert planning.env["HF_HUB_OFFLINE"], "before `call` reads the program's environment"

    def run(*args: str, stdin: str = "", env: dict[str, str] | None = None) -> Result:
        return call("plan", *args, stdin=stdin, env=env)

    return run


def screen(program: Program, columns: int, *args: str) -> list[str]:
    """What stands in a terminal of that width in the end."""
    env = program.env | {"TERM": "xterm-256color"}
    with Terminal(argv("plan", *args), env=env, cwd=program.folder, columns=columns, lines=60) as terminal:
        terminal.wait()
        return terminal.lines


def document(result: Result) -> dict[str, Any]:
    parsed: dict[str, Any] = json.loads(result.out)
    return parsed


def test_the_agents_on_a_card_of_a_size(planning: Program) -> None:
    done = planning.run("plan", "--gpu", "16GiB")
    assert (done.code, done.err) == (0, "")
    assert "\x1b" not in done.out
    lines = done.out.splitlines()
    assert lines[0] == "A card of 16 GB: 15.47 GiB to CUDA"
    assert re.match(r"AGENT +MODEL +FITS +CONTEXT +AT ONCE +TOKENS/S +DOWNLOAD$", lines[2])
    assert re.match(r"architect  qwen3-14b-awq +yes +32768 +1\.\d  21-40 +9\.98 GB$", lines[3])
    assert re.match(r"po +qwen2\.5-7b-awq +yes +16384 +\d\.\d  38-72 +5\.57 GB$", lines[4])
    assert re.match(r"architect +9\.44 +1\.70 +\d\.\d\d +1\.24  █+#+=+·+\|$", lines[7])
    assert "Together: no two of them fit this card" in done.out
    assert "tokens/s are derived from memory bandwidth (RTX 4060 Ti to RTX 5060 Ti)" in done.out
    assert not (planning.folder / "state").exists(), "nothing was touched"
    assert not (planning.folder / "hub").exists()


def test_without_a_gpu_the_reference_card_is_planned_for_and_said(plan: Call) -> None:
    done = plan()
    assert done.code == 0, done.err
    assert done.out.splitlines()[0].endswith(": planned for a card of 16 GB, 15.47 GiB to CUDA")
    assert document(plan("--json"))["card"]["origin"] == "reference"


def test_json_is_the_contract(plan: Call) -> None:
    done = plan("--gpu", "16GiB", "--json")
    assert (done.code, done.err) == (0, "")
    shown = document(done)
    card = shown["card"]
    assert (card["name"], card["total_bytes"], card["free_bytes"]) == (
        "a card of 16 GB",
        int(15.47 * GIB),
        None,
    )
    assert (card["origin"], card["simulated"]) == ("asked", False)
    architect, po = shown["agents"]
    assert (architect["name"], architect["model"], architect["repo"]) == (
        "architect",
        "qwen3-14b-awq",
        "Qwen/Qwen3-14B-AWQ",
    )
    for agent in (architect, po):
        parts = ("weights_bytes", "overhead_bytes", "kv_cache_bytes", "free_bytes")
        assert sum(agent[part] for part in parts) == card["total_bytes"]
        assert agent["fits"] is True
        assert agent["budget_bytes"] == card["total_bytes"] - agent["free_bytes"]
        assert agent["concurrency"] >= 1
        low, high = agent["tokens_per_s"]
        assert 0 < low < high
        assert (agent["measured"], agent["shortfall"]) == ([], None)
    assert (architect["utilization"], architect["context"], architect["sequences"]) == (0.92, 32768, 4)
    assert architect["kv_tokens"] >= 32768
    assert architect["download_bytes"] == 9_980_000_000
    assert shown["together"] == []
    assert document(plan("--gpu", "24GiB", "--json"))["together"] == [["architect", "po"]]


def test_what_does_not_fit_says_by_how_much_and_what_would(plan: Call) -> None:
    done = plan("Qwen/Qwen2.5-32B-Instruct-AWQ", "--gpu", "16GiB")
    assert done.code == 3
    assert done.err == "error: Qwen/Qwen2.5-32B-Instruct-AWQ does not fit a card of 16 GB\n"
    for words in (
        "weights 18.14 GiB",
        "the card gives 14.23 GiB",
        "9.61 GiB short",
        "  - model: qwen3-14b-awq\n",
        "  - cpu_offload: ",
        "  - --profile offload-32b, where architect runs it with context: 8192, cpu_offload: 8GiB (1.4 to 2.7 tok",
        "  - a card of 32 GB\n",
        "planned as an agent with context: 32768, sequences: 4, kv_cache_dtype: fp8\n",
    ):
        assert words in done.out
    assert re.search(
        r"^Qwen2\.5-32B-Instruct-AWQ +18\.14 +1\.70 +4\.00 +-9\.61  █+\|█+#+=+$", done.out, re.MULTILINE
    )


def test_a_shortfall_in_json(plan: Call) -> None:
    done = plan("--profile", "large", "--gpu", "16GiB", "--json")
    assert done.code == 3
    error = json.loads(done.err)["error"]
    assert (error["code"], error["message"]) == ("does_not_fit", "architect does not fit a card of 16 GB")
    architect, po = document(done)["agents"]
    assert (architect["fits"], po["fits"]) == (False, True)
    assert (architect["free_bytes"], architect["concurrency"]) == (None, None)
    shortfall = architect["shortfall"]
    assert shortfall["missing_bytes"] > 9 * GIB
    assert "GiB short" in shortfall["message"]
    changes = [remedy["change"] for remedy in shortfall["remedies"]]
    assert {"model": "qwen3-14b-awq"} in changes
    assert {"profile": "offload-32b"} in changes
    assert None in changes, "another card is no change to the catalog"
    assert all(remedy["message"] for remedy in shortfall["remedies"])


def test_what_nobody_knows_is_said_and_the_rest_is_planned(planning: Program) -> None:
    done = planning.run("plan", "--profile", "obscure", "--gpu", "16GiB")
    assert done.code == 1
    assert done.err == "error: nothing is known of po\n"
    assert re.search(r"^architect .* yes ", done.out, re.MULTILINE)
    assert re.search(r"^po .* unknown ", done.out, re.MULTILINE)
    assert "po: Nobody/Knows-It is not here, and HF_HUB_OFFLINE forbids asking the Hub\n" in done.out
    known = document(planning.run("plan", "--profile", "obscure", "--json"))["agents"][1]
    assert (known["fits"], known["weights_bytes"], known["shortfall"]) == (None, None, None)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--gpu large", "'large' is not the size of a card"),
        ("--gpu 0", "'0' is not the size of a card"),
        ("nobody", "no agent or model named 'nobody'"),
        ("Qwen/..", "expected a Hub repository"),
        ("--engine vllm-cpu --gpu 16GiB", "--gpu says how large a GPU is"),
    ],
)
def test_what_cannot_be_understood(plan: Call, line: str, message: str) -> None:
    done = plan(*line.split())
    assert (done.code, done.out) == (2, "")
    assert message in done.err
    assert "hint: " in done.err


@pytest.mark.parametrize("columns", [80, 120])
def test_screens(planning: Program, columns: int) -> None:
    lines = screen(planning, columns, "--profile", "large", "--gpu", "16GiB")
    bars = [line for line in lines if re.match(r"(architect|po) +\d+\.\d\d ", line)]
    assert [len(bar) <= columns for bar in bars] == [True, True]
    assert max(map(len, bars)) > columns - 3, "the bars take the width there is"
    assert len({bar.index("|") for bar in bars}) == 1, "one scale"
    too_large, fitting = bars
    assert re.search(r" █+\|█*#+=+$", too_large)
    assert re.search(r" █+#+=+·+\|$", fitting)
    folded = " ".join(line.strip() for line in lines)
    assert "architect does not fit: 32768 tokens need" in folded
    assert "of weights fit beside this KV cache" in folded
    broken = [
        line
        for line in lines
        if line and not line.startswith(" ") and line[0].islower() and line[:2].isdigit()
    ]
    assert broken == []


def test_colours_are_not_needed(planning: Program) -> None:
    coloured, plain = (
        Terminal(argv("plan", *options), env=planning.env | {"TERM": "xterm-256color"}, cwd=planning.folder)
        for options in ((), ("--no-color",))
    )
    with coloured, plain:
        coloured.wait()
        plain.wait()
    assert b"\x1b[34m" in coloured.raw
    assert b"\x1b" not in plain.raw
    assert coloured.lines == plain.lines


def test_a_pipe_without_unicode_gets_other_shapes(planning: Program) -> None:
    done = planning.run("plan", "po", "--gpu", "16GiB", env={"PYTHONIOENCODING": "ascii"})
    assert (done.code, done.err) == (0, "")
    assert re.search(r"^po .* X+#+=+\.+\|$", done.out, re.MULTILINE)


def test_any_repository_is_read_on_the_hub(planning: Program) -> None:
    files = {
        "config.json": json.dumps(TINY_CONFIG).encode(),
        "model.safetensors": safetensors({"model.embed_tokens.weight": 256_000}),
        "README.md": b"not needed",
    }
    with serving(LoopbackHub(repo="someone/Tiny", files=files)) as hub:
        env = {"HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0"}
        done = planning.run("plan", "someone/Tiny", "--gpu", "16GiB", "--json", env=env)
    assert (done.code, done.err) == (0, "")
    (tiny,) = document(done)["agents"]
    assert (tiny["repo"], tiny["fits"], tiny["context"]) == ("someone/Tiny", True, 4096)
    assert tiny["download_bytes"] == len(files["config.json"]) + len(files["model.safetensors"])
    assert tiny["notes"] == [
        f"its newest commit is {COMMIT[:12]}",
        "read from the Hub; its files are not here yet",
    ]
    assert not (planning.folder / "hub").exists(), "nothing was downloaded"


def test_the_simulated_card(program: Program) -> None:
    done = program.run("plan", "--engine", "simulated", "--json")
    assert (done.code, done.err) == (0, "")
    shown = document(done)
    assert (shown["engine"], shown["card"]["uuid"], shown["card"]["simulated"]) == (
        "simulated",
        "SIM-0",
        True,
    )
    assert shown["card"]["free_bytes"] == shown["card"]["total_bytes"]
    assert [agent["tokens_per_s"] for agent in shown["agents"]] == [None, None], "there is no card to be fast"


class TestTheCardHere:
    """What only a machine with a GPU shows: the screen of an outlook that is made up."""

    CARD = Card(
        id="GPU-1",
        name="NVIDIA GeForce RTX 5060 Ti",
        total_bytes=16 * GIB,
        free_bytes=4 * GIB,
        holders=(
            MemoryHolder(pid=812, name="gnome-shell", used_bytes=GIB // 2),
            MemoryHolder(pid=900, name="python", used_bytes=None),
        ),
    )

    def outlook(self, **changes: Any) -> Outlook:  # noqa: ANN401 - any field
        model = Model(name="small", repo="Qwen/Qwen2.5-7B-Instruct-AWQ")
        fit = Fit(
            agent="po",
            max_model_len=16384,
            max_num_seqs=8,
            kv_cache_dtype="auto",
            utilization=0.75,
            card_total_bytes=16 * GIB,
            budget_bytes=12 * GIB,
            start_bytes=12 * GIB + GIB // 2,
            weights_bytes=5 * GIB,
            overhead_bytes=GIB,
            kv_cache_bytes=6 * GIB,
            kv_tokens=100_000,
            concurrency=6.1,
            graph_bytes=GIB // 2,
            measured=frozenset({"weights_bytes", "overhead_bytes"}),
        )
        agent = AgentOutlook(
            agent=Agent(name="po", model=model, port=8002, context=16384, sequences=8),
            declared=True,
            answer=fit,
            weights_bytes=fit.weights_bytes,
            overhead_bytes=fit.overhead_bytes,
            kv_cache_bytes=fit.kv_cache_bytes,
            tokens_per_s=Speed(low=60.2, high=72.4),
            download_bytes=0,
        )
        card = PlannedCard(name=self.CARD.name, origin=CardOrigin.HERE, total_bytes=16 * GIB, card=self.CARD)
        return Outlook(engine="vllm", card=card, agents=(replace(agent, **changes),), together=())

    def test_who_uses_it_what_was_measured_and_what_is_free(self, capsys: pytest.CaptureFixture[str]) -> None:
        plan_view.show(self.outlook(), Output())
        lines = capsys.readouterr().out.splitlines()
        assert lines[:2] == [
            "NVIDIA GeForce RTX 5060 Ti: 16.00 GiB, 4.00 GiB free now",
            "  in use by gnome-shell (pid 812, 0.50 GiB), python (pid 900)",
        ]
        assert re.match(r"po +small +yes +16384 +6\.1  60-72 +on disk$", lines[4])
        assert re.match(r"po +5\.00\* +1\.00\* +6\.00 +4\.00  █+#+=+·+\|$", lines[7])
        assert lines[-4:] == [
            "* measured: the engine said so when it last started here; the rest is estimated",
            "po: CUDA graphs took 0.50 GiB beside that*",
            "po starts when 12.50 GiB are free; a launch takes off what runs there",
            "tokens/s are derived from memory bandwidth, for one request at a time",
        ]

    def test_the_same_as_a_document(self) -> None:
        shown = plan_view.document(self.outlook())
        document = json.loads(to_json(shown))
        card, (agent,) = document["card"], document["agents"]
        assert (card["origin"], card["uuid"], card["free_bytes"]) == ("here", "GPU-1", 4 * GIB)
        assert card["processes"][0] == {"pid": 812, "name": "gnome-shell", "used_bytes": GIB // 2}
        assert (agent["measured"], agent["download_bytes"]) == (["overhead_bytes", "weights_bytes"], 0)
        assert agent["free_bytes"] == 4 * GIB

    def test_what_the_gpu_cannot_run_is_no_success(self, capsys: pytest.CaptureFixture[str]) -> None:
        outlook = self.outlook(
            problems=("the NVIDIA driver is 550, the engine's CUDA 13 needs 580 or newer",)
        )
        plan_view.show(outlook, Output())
        out = capsys.readouterr().out
        assert re.search(r"^po +small +no ", out, re.MULTILINE)
        assert "\npo: the NVIDIA driver is 550" in out
        failed = plan_view.failure(outlook)
        assert failed is not None
        assert (failed.exit_code, failed.message) == (3, "po cannot run on NVIDIA GeForce RTX 5060 Ti")
