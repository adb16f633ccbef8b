"""On a machine with an NVIDIA card: what we read is what nvidia-smi says."""

from __future__ import annotations

import pytest

from tests.gpu.nvidia_smi import available, compare

pytestmark = pytest.mark.skipif(not available(), reason="needs an NVIDIA card and nvidia-smi")


def test_every_reading_is_the_same() -> None:
    assert [each for each in compare() if not each.equal] == []
