"""Sizes of cards as people write them, and what CUDA gives of each."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_manager.errors import UsageError
from agent_manager.gpu.base import GIB
from agent_manager.swap.planned_card import card_of_size


@pytest.mark.parametrize(
    ("size", "gib"),
    [
        ("16GiB", 15.47),
        ("16GB", 15.47),
        ("16", 15.47),
        ("16gb", 15.47),
        ("24GiB", 23.56),
        ("8GiB", 8 * 15.47 / 16),
        ("15.47GiB", 15.47),
        ("15841 MiB", 15841 / 1024),
        ("15.5GB", 15.5e9 / GIB),
    ],
)
def test_sizes(size: str, gib: float) -> None:
    assert card_of_size(size).total_bytes == pytest.approx(gib * GIB, abs=2)


@pytest.mark.parametrize(
    "size", ["", "0", "large", "-16GiB", "16 KiB", "0.5GiB", "99999GiB", "nan", "16GiB8", "1e3"]
)
def test_what_is_no_size(size: str) -> None:
    with pytest.raises(UsageError, match="is not the size of a card") as raised:
        card_of_size(size)
    assert "16GiB" in str(raised.value.hint)


def test_a_size_that_is_common_has_examples() -> None:
    card = card_of_size("16GiB")
    assert card.examples == ("RTX 4060 Ti", "RTX 5060 Ti")
    assert card.bandwidth_bytes_per_s == (288e9, 448e9)
    assert card_of_size("15.47GiB").bandwidth_bytes_per_s is None


@given(st.integers(4, 200), st.integers(4, 200))
def test_a_larger_card_is_never_planned_smaller(one: int, other: int) -> None:
    small, large = sorted((one, other))
    assert card_of_size(f"{small}GiB").total_bytes <= card_of_size(f"{large}GiB").total_bytes
    assert card_of_size(f"{small}GiB").total_bytes < small * GIB
