"""The library that stands in for the NVIDIA driver's, built with the C compiler that is here."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

SOURCE = Path(__file__).with_name("libnvidia_ml.c")
FLAGS = ("-O2", "-shared", "-fPIC", "-Wall", "-Wextra", "-Werror")


def compiler() -> str | None:
    """The C compiler, None where there is none."""
    return shutil.which("cc")


def build(folder: Path) -> Path:
    """Build libnvidia-ml.so.1 in `folder`, which is then for LD_LIBRARY_PATH, and return `folder`."""
    cc = compiler()
    assert cc is not None, "there is no C compiler"
    subprocess.run([cc, *FLAGS, "-o", folder / "libnvidia-ml.so.1", SOURCE], check=True, timeout=30)
    return folder
