"""models.lock.yaml: the commit that each repository was first pulled at, so that every later pull is the same.

It lies beside the catalog, to be kept under version control with it. When that folder cannot be written, or the
catalog is part of the installed package, it lies in the state folder. Both are read; the one beside the catalog
wins.
"""

from __future__ import annotations

import errno
import fcntl
import os
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from agent_manager.catalog.document import Document, is_there, read_document, read_text
from agent_manager.catalog.values import RefusedError, parse_commit, parse_repo
from agent_manager.errors import StateUnusable

if TYPE_CHECKING:
    from collections.abc import Iterator

FILE_NAME = "models.lock.yaml"

_HEADER = """\
# Written by agent-manager: the commit each Hub repository was first pulled at. Keep it with the catalog.
# To move to a repository's newest commit, delete its line and pull again.
"""
_UNWRITABLE = {errno.EACCES, errno.EPERM, errno.EROFS}


def lock_paths(catalog: Path, *, state_root: Path | None) -> tuple[Path, ...]:
    """Where the catalog's lock file may be, best first."""
    beside = catalog.absolute().with_name(FILE_NAME)
    elsewhere = () if state_root is None else (state_root / FILE_NAME,)
    if elsewhere and beside.parent == Path(__file__).parent:
        return elsewhere
    return (beside, *elsewhere)


def read_lock(catalog: Path, *, state_root: Path | None) -> dict[str, str]:
    """Commits by repository. Raises CatalogInvalid for a broken lock file, UsageError for an unreadable one."""
    commits: dict[str, str] = {}
    for path in reversed(lock_paths(catalog, state_root=state_root)):
        commits |= _read(path)
    return commits


def record_revision(catalog: Path, repo: str, commit: str, *, state_root: Path | None) -> Path:
    """Keep `commit` for `repo`, and return the lock file, replaced as a whole; other entries stay.

    Waits for another process that is recording. Raises ValueError for what is no commit or repository,
    CatalogInvalid for a broken lock file (which is left as it is), StateUnusable when nothing can be written.
    """
    parse_repo(repo)
    parse_commit(commit)
    best, *others = lock_paths(catalog, state_root=state_root)
    try:
        return _record(best, repo, commit)
    except OSError as error:
        if not others or error.errno not in _UNWRITABLE:
            raise _unwritable(best, error) from error
    try:
        return _record(others[0], repo, commit)
    except OSError as error:
        raise _unwritable(others[0], error) from error


def _unwritable(path: Path, error: OSError) -> StateUnusable:
    return StateUnusable(
        f"{path}: {error.strerror or error}",
        hint="make the folder writable with free space, or write the commit into the catalog as 'revision'",
        where=str(path),
    )


def _read(path: Path) -> dict[str, str]:
    """One lock file's commits; none when it does not exist."""
    if not is_there(path):
        return {}
    document = read_document(read_text(path), file=str(path), environ={})
    commits = _commits(document) if document.complete else {}
    document.raise_problems()
    return commits


def _commits(document: Document) -> dict[str, str]:
    """The commits of a lock file; what is wrong with them is added to the document's problems."""
    hint = "restore the file from version control, or delete it and pull again"
    data = {} if document.data is None else document.data
    revisions = data.get("revisions", {}) if isinstance(data, dict) else None
    if (
        not isinstance(data, dict)
        or not isinstance(revisions, dict)
        or data.keys() - {"version", "revisions"}
    ):
        document.report((), "expected 'version' and 'revisions', and nothing else", hint)
        return {}
    if data and data.get("version") != 1:
        document.report(("version",), "expected version 1", hint)
    commits: dict[str, str] = {}
    for repo, commit in revisions.items():
        try:
            commits[parse_repo(repo)] = parse_commit(commit)
        except RefusedError as refused:
            document.report(("revisions", repo), refused.message, hint)
    return commits


def _record(path: Path, repo: str, commit: str) -> Path:
    """Add one entry and replace the file. Raises OSError."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with _exclusive(path.parent):
        commits = _read(path) | {repo: commit}
        lines = [f"  {name}: {revision}\n" for name, revision in sorted(commits.items())]
        _replace(path, _HEADER + "version: 1\nrevisions:\n" + "".join(lines))
    return path


@contextmanager
def _exclusive(folder: Path) -> Iterator[None]:
    """One writer at a time. The lock is on the folder: the file itself is replaced, and a lock file is litter."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _replace(path: Path, text: str) -> None:
    """Write the file so that a reader, or a crash, sees the old one or the new one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise
