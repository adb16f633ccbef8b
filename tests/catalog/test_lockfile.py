from __future__ import annotations

import os
import resource
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from agent_manager.catalog import lockfile
from agent_manager.catalog.load import load_catalog
from agent_manager.catalog.lockfile import lock_paths, read_lock, record_revision
from agent_manager.errors import CatalogInvalid, StateUnusable
from tests.catalog.conftest import SMALL

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

REPO = "Qwen/Qwen2.5-0.5B-Instruct"
ONE, TWO = "1" * 40, "2" * 40


@pytest.fixture
def catalog(tmp_path: Path) -> Path:
    path = tmp_path / "here" / "models.yaml"
    path.parent.mkdir()
    path.write_text(SMALL)
    return path


def test_a_recorded_commit_is_the_models_revision(catalog: Path, tmp_path: Path) -> None:
    assert load_catalog(catalog, environ={}, state_root=tmp_path).agent("dev").model.revision is None
    written = record_revision(catalog, REPO, ONE, state_root=tmp_path)
    assert written == catalog.with_name("models.lock.yaml")
    assert load_catalog(catalog, environ={}, state_root=tmp_path).agent("dev").model.revision == ONE
    assert {path.name for path in catalog.parent.iterdir()} == {"models.yaml", "models.lock.yaml"}


def test_the_catalogs_own_revision_wins(catalog: Path) -> None:
    record_revision(catalog, REPO, ONE, state_root=None)
    catalog.write_text(SMALL.replace("Instruct}", f'Instruct, revision: "{TWO}"}}'))
    assert load_catalog(catalog, environ={}).agent("dev").model.revision == TWO


def test_other_entries_stay_and_the_same_is_replaced(catalog: Path) -> None:
    record_revision(catalog, REPO, ONE, state_root=None)
    record_revision(catalog, "A/B", ONE, state_root=None)
    record_revision(catalog, REPO, TWO, state_root=None)
    assert read_lock(catalog, state_root=None) == {REPO: TWO, "A/B": ONE}


def test_writers_at_once_lose_nothing(catalog: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(
            pool.map(lambda number: record_revision(catalog, f"A/r{number}", ONE, state_root=None), range(24))
        )
    assert set(read_lock(catalog, state_root=None)) == {f"A/r{number}" for number in range(24)}


@pytest.fixture
def unwritable() -> Iterator[Path]:
    """A folder with a catalog that this test may read and not write: root stops being root for a while."""
    root = os.geteuid() == 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name, "here")
        folder.mkdir()
        (folder / "models.yaml").write_text(SMALL)
        Path(name).chmod(0o777)
        folder.chmod(0o555)
        if root:
            os.seteuid(65534)
        yield folder
        if root:
            os.seteuid(0)
        folder.chmod(0o755)


def test_the_state_folder_serves_where_the_catalogs_cannot_be_written(unwritable: Path) -> None:
    catalog, state = unwritable / "models.yaml", unwritable.parent / "state"
    assert record_revision(catalog, REPO, ONE, state_root=state) == state / "models.lock.yaml"
    assert load_catalog(catalog, environ={}, state_root=state).agent("dev").model.revision == ONE
    with pytest.raises(StateUnusable, match="Permission denied"):
        record_revision(catalog, REPO, ONE, state_root=None)


def test_beside_the_catalog_wins_over_the_state_folder(catalog: Path, tmp_path: Path) -> None:
    (tmp_path / "models.lock.yaml").write_text(f'version: 1\nrevisions: {{{REPO}: "{TWO}", A/B: "{TWO}"}}\n')
    record_revision(catalog, REPO, ONE, state_root=tmp_path)
    assert read_lock(catalog, state_root=tmp_path) == {REPO: ONE, "A/B": TWO}


def test_the_installed_packages_folder_is_left_alone(tmp_path: Path) -> None:
    installed = Path(lockfile.__file__).with_name("models.yaml")
    assert lock_paths(installed, state_root=tmp_path) == (tmp_path / "models.lock.yaml",)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("version: 1\nrevisions:\n  A/B: main\n", 3),
        ("version: 2\nrevisions: {}\n", 1),
        ("version: 1\nrevisions: []\n", 1),
        ("version: 1\nrevision: {}\n", 1),
        ("version: 1\nrevisions: {\n", 2),
        (f"version: 1\nrevisions:\n  A/B: {ONE}\n  ../x: {ONE}\n", 4),
    ],
)
def test_a_broken_lock_file_is_reported_and_left_alone(catalog: Path, text: str, line: int) -> None:
    lock = catalog.with_name("models.lock.yaml")
    lock.write_text(text)
    for attempt in (
        lambda: load_catalog(catalog, environ={}),
        lambda: record_revision(catalog, REPO, ONE, state_root=None),
    ):
        with pytest.raises(CatalogInvalid) as refused:
            attempt()
        assert [(problem.file, problem.line) for problem in refused.value.problems] == [(str(lock), line)]
    assert lock.read_text() == text


def test_problems_of_catalog_and_lock_file_come_together(catalog: Path) -> None:
    catalog.write_text(SMALL + "x: 1\n")
    catalog.with_name("models.lock.yaml").write_text("version: 3\n")
    with pytest.raises(CatalogInvalid) as refused:
        load_catalog(catalog, environ={})
    assert [Path(problem.file).name for problem in refused.value.problems] == [
        "models.yaml",
        "models.lock.yaml",
    ]


@pytest.mark.parametrize(
    ("repo", "commit"), [(REPO, "main"), (REPO, "A" * 40), ("nope", ONE), ("a\nb/c", ONE)]
)
def test_only_commits_of_repositories_are_recorded(catalog: Path, repo: str, commit: str) -> None:
    with pytest.raises(ValueError, match="expected"):
        record_revision(catalog, repo, commit, state_root=None)
    assert not catalog.with_name("models.lock.yaml").exists()


@pytest.fixture
def no_space() -> Iterator[Callable[[], None]]:
    """When called, files can no longer grow beyond a few bytes, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (16, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_failed_write_leaves_the_old_file(catalog: Path, no_space: Callable[[], None]) -> None:
    record_revision(catalog, REPO, ONE, state_root=None)
    no_space()
    with pytest.raises(StateUnusable, match="File too large"):
        record_revision(catalog, REPO, TWO, state_root=None)
    assert read_lock(catalog, state_root=None) == {REPO: ONE}
    assert {path.name for path in catalog.parent.iterdir()} == {"models.yaml", "models.lock.yaml"}
