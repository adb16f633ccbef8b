"""An agent, a fit and a source to render commands from; `replace` what a test is about."""

from __future__ import annotations

from agent_manager.catalog.agents import Agent, Model
from agent_manager.engines.base import Source
from agent_manager.gpu.base import GIB
from agent_manager.planning.base import Fit

COMMIT = "31c69efc29464b6bb0aee1398b5a7b50a99340c3"
SOURCE = Source(model="Qwen/Qwen3-14B-AWQ", revision=COMMIT)
MODEL = Model(
    name="qwen3-14b-awq", repo=SOURCE.model, revision=COMMIT, tool_parser="hermes", reasoning_parser="qwen3"
)
AGENT = Agent(
    name="architect",
    model=MODEL,
    port=8000,
    context=32768,
    sequences=4,
    kv_cache_dtype="fp8",
    sampling={"top_p": 0.95, "temperature": 0.1},
)
BARE = Agent(name="po", model=Model(name="bare", repo="a/b"), port=8002, context=2048, sequences=8)
FIT = Fit(
    agent="architect",
    max_model_len=32768,
    max_num_seqs=4,
    kv_cache_dtype="fp8",
    utilization=0.92,
    card_total_bytes=16 * GIB,
    budget_bytes=15 * GIB,
    start_bytes=15 * GIB,
    weights_bytes=10 * GIB,
    overhead_bytes=2 * GIB,
    kv_cache_bytes=3 * GIB,
    kv_tokens=39321,
    concurrency=1.2,
)
