"""What the end-to-end tests run on; `make e2e` has made it with tests/e2e/prepare.py."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from agent_manager.catalog.load import load_catalog, packaged_catalog
from tests.docker.debian import compose_binary
from tests.e2e import prepare, vllm_image

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def e2e_cache() -> Path:
    """Where prepare.py has put everything. Fails, rather than skips, when it has not run."""
    cache = prepare.cache_folder()
    if not prepare.is_ready(cache):
        pytest.fail(
            f"{cache} is not ready: run 'python tests/e2e/prepare.py' first, or 'make e2e'", pytrace=False
        )
    return cache


@pytest.fixture(scope="session")
def vllm_venv(e2e_cache: Path) -> Path:
    """The environment that vLLM for the CPU is installed in; `bin/vllm` is its command."""
    return e2e_cache / "vllm"


@pytest.fixture(scope="session")
def clients_python(e2e_cache: Path) -> Path:
    """The Python that LangChain and the OpenAI Agents SDK are installed for; runs clients.py."""
    return prepare.clients_marker(e2e_cache).with_name("bin") / "python"


@pytest.fixture(scope="session")
def tiny_checkpoints(e2e_cache: Path) -> tuple[Path, Path]:
    """Two folders with a tiny Qwen2 each, of different weights; 4096 tokens of context at most."""
    first, second = (e2e_cache / name for name in prepare.CHECKPOINTS)
    return first, second


@pytest.fixture(scope="session")
def tiny_checkpoint(tiny_checkpoints: tuple[Path, Path]) -> Path:
    """One of them."""
    return tiny_checkpoints[0]


@pytest.fixture(scope="session")
def compose_program(e2e_cache: Path) -> Path:
    """Docker compose v2."""
    program = compose_binary(e2e_cache)
    if program is None:
        pytest.fail("docker compose v2 is not installed, and this is not Debian", pytrace=False)
    return program


@pytest.fixture(scope="session")
def vllm_cpu_image(docker_host: str, e2e_cache: Path) -> Iterator[str]:
    """The image that the default catalog names for vllm-cpu: the one Docker has, else ours under its name."""
    pinned = load_catalog(packaged_catalog(), environ={}).engines["vllm-cpu"].image
    assert pinned
    with vllm_image.under_the_name(pinned, vllm_image.ensure(e2e_cache, docker_host), docker_host):
        yield pinned


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this source tree, built just now."""
    folder = tmp_path_factory.mktemp("wheel")
    _run(sys.executable, "-m", "build", "--wheel", "--outdir", folder, ROOT)
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="session")
def wheel_cli(wheel: Path, e2e_cache: Path) -> Iterator[Path]:
    """`agent-manager` as installed from the wheel into an environment of its own, without the source tree.

    Kept for the wheel's contents; its dependencies are installed once and stay when the wheel changes.
    """
    environment, content = e2e_cache / "wheel", hashlib.sha256(wheel.read_bytes()).hexdigest()
    with (e2e_cache / "wheel.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if _installed(environment) != content:
            _install(wheel, environment, content)
        fcntl.flock(lock, fcntl.LOCK_SH)  # others may use it too, none may replace it meanwhile
        yield environment / "bin" / "agent-manager"


def _installed(environment: Path) -> str | None:
    marker = environment / "wheel.sha256"
    return marker.read_text("utf-8") if marker.is_file() else None


def _install(wheel: Path, environment: Path, content: str) -> None:
    marker = environment / "wheel.sha256"
    usable = marker.is_file()
    marker.unlink(missing_ok=True)
    if not usable:
        shutil.rmtree(environment, ignore_errors=True)
        venv.create(environment, with_pip=True)
    pip = (environment / "bin" / "python", "-m", "pip", "--quiet", "--disable-pip-version-check")
    # Its dependencies where they are missing, then itself in any case: the version of a work in progress stays.
    _run(*pip, "install", wheel)
    _run(*pip, "install", "--force-reinstall", "--no-deps", wheel)
    marker.write_text(content, "utf-8")


def _run(*argv: str | Path) -> None:
    outside = {name: value for name, value in os.environ.items() if name not in {"PYTHONPATH", "VIRTUAL_ENV"}}
    done = subprocess.run(
        argv, cwd="/", env=outside, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    if done.returncode:
        pytest.fail(f"{' '.join(map(str, argv))}:\n{done.stdout}", pytrace=False)
