"""A Hub cache as a download leaves it, filled from a checkpoint's folder: for models that are pulled by name."""

from __future__ import annotations

import hashlib
import os
import shutil
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

SOMEBODY = 1000
"""A user who is not root; where tests run as root, the files are this user's, as a person's are."""


def add(cache: Path, checkpoint: Path, repo: str, revision: str) -> None:
    """Put the files of `checkpoint` into `cache` as `repo` at `revision`, readable for their owner alone.

    Snapshots link to the repository's blobs, and those into one folder for the whole cache, as hf-xet leaves them.
    There is no `refs/main`: a pull of a commit writes none.
    """
    repository = cache / f"models--{repo.replace('/', '--')}"
    snapshot = repository / "snapshots" / revision
    for folder in (cache / "blobs", repository / "blobs", repository / "refs", snapshot):
        folder.mkdir(parents=True, exist_ok=True)
    for file in checkpoint.iterdir():
        name = hashlib.sha256(file.read_bytes()).hexdigest()
        content = cache / "blobs" / name
        shutil.copyfile(file, content)
        content.chmod(0o600)
        if os.geteuid() == 0:
            os.chown(content, SOMEBODY, SOMEBODY)
        (repository / "blobs" / name).symlink_to(f"../../blobs/{name}")
        (snapshot / file.name).symlink_to(f"../../blobs/{name}")
