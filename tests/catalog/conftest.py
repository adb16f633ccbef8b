from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import pytest

from agent_manager.catalog.agents import Catalog
from agent_manager.catalog.load import load_catalog
from agent_manager.errors import CatalogInvalid, Problem

if TYPE_CHECKING:
    from pathlib import Path

Load = Callable[..., Catalog]
Problems = Callable[..., tuple[Problem, ...]]

SMALL = """\
version: 1
models:
  tiny: {repo: Qwen/Qwen2.5-0.5B-Instruct}
agents:
  dev: {model: tiny, port: 8001, context: 4k}
"""


@pytest.fixture
def load(tmp_path: Path) -> Load:
    """Writes a catalog and loads it."""

    def write_and_load(
        text: str, *, environ: Mapping[str, str] | None = None, profile: str | None = None
    ) -> Catalog:
        path = tmp_path / "models.yaml"
        path.write_text(text, encoding="utf-8")
        return load_catalog(path, profile=profile, environ=environ or {}, state_root=tmp_path / "state")

    return write_and_load


@pytest.fixture
def problems(load: Load) -> Problems:
    """Writes a catalog that must be refused, and returns the problems."""

    def write_and_refuse(text: str, *, environ: Mapping[str, str] | None = None) -> tuple[Problem, ...]:
        with pytest.raises(CatalogInvalid) as refused:
            load(text, environ=environ)
        return refused.value.problems

    return write_and_refuse
