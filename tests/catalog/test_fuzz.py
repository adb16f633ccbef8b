"""Whatever is in the file: it loads, or one of our own errors says why in words that can be printed."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from agent_manager.catalog.agents import Catalog
from agent_manager.catalog.load import load_catalog
from agent_manager.errors import AgentManagerError, CatalogInvalid

TEXT = (Path(__file__).parents[2] / "models.yaml").read_text()
LINES = TEXT.splitlines()
KEYS = [
    *(
        "version",
        "engine",
        "runtime",
        "engines",
        "models",
        "agents",
        "profiles",
        "vllm",
        "vllm-cpu",
        "simulated",
    ),
    *(
        "image",
        "command",
        "env",
        "kv_cache",
        "stall_timeout",
        "faults",
        "load_seconds",
        "repo",
        "revision",
        "path",
    ),
    *(
        "model",
        "port",
        "context",
        "sequences",
        "sampling",
        "temperature",
        "extra_args",
        "thinking",
        "a",
        "dev",
        "",
    ),
]
VALUES = [
    *(
        1,
        8001,
        0,
        -1,
        1.5,
        True,
        None,
        "vllm",
        "docker",
        "32k",
        "4GiB",
        "auto",
        "a",
        "A/B",
        "${env:X}",
        "${env:",
    ),
    *("--port", "oom", "hang,oom", "f" * 40, "x:1", "\n", "\u202e", "é", 10**30, 1e308),
]
TREES = st.recursive(
    st.sampled_from(VALUES) | st.text(max_size=5),
    lambda children: (
        st.lists(children, max_size=3) | st.dictionaries(st.sampled_from(KEYS), children, max_size=6)
    ),
    max_leaves=25,
)
PIECES = st.sampled_from(
    [*"{}[]:,#&*!|>'\"%@`-?\t\n\0\x85\ufeff\ud7ff", "---", "<<: *a", ": ", "\n  ", "${env:", "0o7", "~"]
)


def check(text: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "models.yaml")
        path.write_bytes(text.encode("utf-8", "surrogatepass"))
        try:
            catalog = load_catalog(path, environ={"X": "1", "Y": "\n"}, profile=None)
        except CatalogInvalid as invalid:
            for problem in invalid.problems:
                assert 1 <= problem.line <= text.count("\n") + text.count("\r") + 1
                assert f"{problem}{problem.hint}".isprintable()
                assert problem.message
                assert not any(
                    word in problem.message.lower() for word in ("input should", "pydantic", "<class")
                )
        except AgentManagerError:
            pass
        else:
            assert isinstance(catalog, Catalog)


@given(st.text())
@settings(deadline=None, max_examples=100)
def test_any_text(text: str) -> None:
    check(text)


@given(
    st.lists(
        st.tuples(st.integers(0, len(TEXT)), st.integers(0, 12), PIECES | st.text(max_size=3)),
        min_size=1,
        max_size=3,
    )
)
@settings(deadline=None, max_examples=200)
def test_the_catalog_with_pieces_replaced(edits: list[tuple[int, int, str]]) -> None:
    text = TEXT
    for start, length, piece in edits:
        text = text[:start] + piece + text[start + length :]
    check(text)


@given(
    st.lists(
        st.tuples(st.integers(0, len(LINES) - 1), st.integers(0, len(LINES) - 1)), min_size=1, max_size=4
    )
)
@settings(deadline=None, max_examples=100)
def test_the_catalog_with_lines_moved_and_doubled(moves: list[tuple[int, int]]) -> None:
    lines = list(LINES)
    for source, target in moves:
        lines.insert(target, lines[source])
    check("\n".join(lines))


@given(st.dictionaries(st.sampled_from(KEYS), TREES, max_size=8))
@settings(deadline=None, max_examples=300)
def test_any_tree_of_known_keys(tree: dict[str, object]) -> None:
    check(json.dumps({"version": 1, "models": {"a": {"repo": "A/B"}}, **tree}))
