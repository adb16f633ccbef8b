"""Images for tests, built here: no registry is needed. The slow part is kept in the cache folder."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import docker

import agent_manager
from tests.docker.debian import key_of, root_filesystem

if TYPE_CHECKING:
    from collections.abc import Iterator

BASE = "agent-manager-test/base:1"
"""Debian with Python 3.11 and curl, and nothing that runs by itself."""
SIMULATED = "agent-manager-test/simulated:1"
"""The simulated engine of this working tree; the entrypoint takes vLLM's arguments."""
PYTHON = "python3.11"

_PACKAGES = ("aiohttp>=3.12,<4", "msgspec>=0.20,<1")
"""What the simulated engine imports; pip adds what those need."""
_DOCKERFILE = f"""\
FROM {BASE}
COPY site /opt/site
RUN {PYTHON} -m compileall -q /opt/site
COPY agent_manager /opt/app/agent_manager
RUN {PYTHON} -m compileall -q /opt/app
ENV PYTHONPATH=/opt/app:/opt/site
ENTRYPOINT ["{PYTHON}", "-P", "-m", "agent_manager.engines.simulated", "serve"]
"""


def build_images(host: str, cache: Path) -> None:
    """Make both, from what the cache holds; the first time takes two minutes, later ones a second or two."""
    api = docker.APIClient(base_url=host, version="auto", timeout=600)
    try:
        if not _has(api, BASE):
            repository, _, tag = BASE.rpartition(":")
            api.import_image(src=str(root_filesystem(cache)), repository=repository, tag=tag)
        with tempfile.TemporaryDirectory() as folder:
            _lay_out(Path(folder), cache)
            said = list(_build(api, folder))
        assert not [each for each in said if "error" in each], said
    finally:
        api.close()


def _has(api: docker.APIClient, image: str) -> bool:
    try:
        api.inspect_image(image)
    except docker.errors.ImageNotFound:
        return False
    return True


def _build(api: docker.APIClient, folder: str) -> Iterator[dict[str, object]]:
    yield from api.build(path=folder, tag=SIMULATED, rm=True, decode=True)


def _lay_out(context: Path, cache: Path) -> None:
    shutil.copytree(_site(cache), context / "site")
    ours = Path(agent_manager.__file__).parent
    shutil.copytree(ours, context / "agent_manager", ignore=shutil.ignore_patterns("__pycache__"))
    (context / "Dockerfile").write_text(_DOCKERFILE)


def _site(cache: Path) -> Path:
    """What the simulated engine imports, for the image's Python."""
    made = cache / f"site-{PYTHON}-{key_of(*_PACKAGES)}"
    if not made.exists():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as folder:
            site = Path(folder, "site")
            pip = (sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check")
            target = ("--target", str(site), "--python-version", "3.11", "--only-binary=:all:")
            subprocess.run([*pip, *target, *_PACKAGES], check=True)
            site.rename(made)
    return made
