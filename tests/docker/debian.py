"""What Docker tests take from Debian's packages: Docker itself, a root filesystem for images, docker compose.

`python -m tests.docker.debian` installs Docker where it is missing. The rest is kept below the cache folder, so that
a second run takes no time.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

PACKAGES = ("docker.io", "iptables", "iproute2", "debootstrap")
SUITE = "bookworm"
"""The suite of the images' root filesystem: its Python is 3.11, as the e2e environment's."""

INSIDE = ("python3.11", "libgomp1", "libnuma1", "libtbb12", "curl", "ca-certificates")
COMPOSE_SUITE = "trixie"
"""Debian 12 has no docker compose v2; the binary of Debian 13's package runs there when called directly."""


class StepFailedError(RuntimeError):
    """A program of Debian's failed; its output is in the message."""


def install_docker() -> None:
    """Docker from Debian's packages, where it is missing and this user is root; else nothing.

    Without it, tests that need Docker say so themselves.
    """
    missing = [name for name in ("docker", "dockerd", "ip", "debootstrap") if shutil.which(name) is None]
    if not missing or os.geteuid() != 0 or shutil.which("apt-get") is None:
        return
    _run("apt-get", "update", "-qq")
    _apt_install(*PACKAGES)
    if shutil.which("docker") is None:
        _apt_install("docker-cli")  # from Debian 13 on, a package of its own


def root_filesystem(cache: Path) -> Path:
    """A tarball of a minimal Debian with Python 3.11 and what vLLM's libraries need; made once, in about 40 s."""
    tarball = cache / f"debian-{SUITE}-{key_of(*INSIDE)}.tar"
    if tarball.is_file():
        return tarball
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as folder:
        system, half = Path(folder) / "system", Path(folder) / "half.tar"
        include = f"--include={','.join(INSIDE)}"
        _run("debootstrap", "--variant=minbase", include, SUITE, system, _mirror())
        skip = (
            f"--exclude=./{path}"
            for path in ("dev/*", "var/cache/apt/*", "var/lib/apt/lists/*", "usr/share/doc/*")
        )
        _run("tar", "-C", system, "--numeric-owner", *skip, "-cf", half, ".")
        half.rename(tarball)
    return tarball


def compose_binary(cache: Path) -> Path | None:
    """Docker compose v2 as a program of its own, or None where there is none and Debian cannot give it."""
    installed = [Path(folder) / "docker-compose" for folder in _PLUGIN_FOLDERS]
    found = next((path for path in installed if path.is_file()), None)
    unpacked = cache / "docker-compose"
    if found or unpacked.is_file():
        return found or unpacked
    keyring = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
    if shutil.which("apt-get") is None or not keyring.is_file():
        return None
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as folder:
        place = Path(folder)
        (place / "lists" / "partial").mkdir(parents=True)
        (place / "sources.list").write_text(
            f"deb [signed-by={keyring}] {_mirror()} {COMPOSE_SUITE} main\n", "utf-8"
        )
        options = {
            "Dir::Etc::sourcelist": place / "sources.list",
            "Dir::Etc::sourceparts": "-",
            "Dir::State::lists": place / "lists",
            "Dir::Cache": place,
            "APT::Sandbox::User": "root",
        }
        apt = [
            "apt-get",
            "-qq",
            *(word for key, value in options.items() for word in ("-o", f"{key}={value}")),
        ]
        _run(*apt, "update")
        _run(*apt, "download", "docker-compose", cwd=place)
        _run("dpkg-deb", "--extract", next(place.glob("docker-compose_*.deb")), place / "x")
        (place / "x" / "usr/libexec/docker/cli-plugins/docker-compose").rename(unpacked)
    return unpacked


_PLUGIN_FOLDERS = (
    str(Path.home() / ".docker/cli-plugins"),
    "/usr/local/lib/docker/cli-plugins",
    "/usr/local/libexec/docker/cli-plugins",
    "/usr/lib/docker/cli-plugins",
    "/usr/libexec/docker/cli-plugins",
)
"""Where Docker looks for its plugins."""


def _mirror() -> str:
    """The Debian mirror that this host's apt is set up with."""
    answer = _output("apt-get", "indextargets", "--format", "$(ORIGIN) $(REPO_URI)", "Created-By: Packages")
    found = next((line.split()[1] for line in answer.splitlines() if line.startswith("Debian ")), None)
    if found is None:
        raise StepFailedError("apt knows no Debian mirror here (apt-get update first?)")
    return found


def _apt_install(*packages: str) -> None:
    _run("apt-get", "install", "-qq", "--yes", "--no-install-recommends", *packages)


def key_of(*words: str) -> str:
    """A short name for what is made of just these."""
    return hashlib.sha256(" ".join(words).encode()).hexdigest()[:8]


def _run(*argv: str | Path, cwd: Path | None = None) -> None:
    """Run a step; its output is in the error when it fails."""
    environ = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    done = subprocess.run(
        argv, cwd=cwd, env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    if done.returncode:
        raise StepFailedError(f"{done.stdout}\nfailed ({done.returncode}): {' '.join(map(str, argv))}")


def _output(*argv: str) -> str:
    return subprocess.run(argv, capture_output=True, check=True, text=True).stdout


if __name__ == "__main__":
    install_docker()
