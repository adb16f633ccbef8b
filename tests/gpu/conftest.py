"""The library that stands in for the driver's, built once for all tests."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.gpu.stub.build import build, compiler

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="session")
def stub_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """For LD_LIBRARY_PATH."""
    if compiler() is None:
        pytest.skip("needs a C compiler (cc) to build the library that stands in for the driver's")
    return build(tmp_path_factory.mktemp("nvml"))
