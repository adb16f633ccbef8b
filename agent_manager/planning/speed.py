"""How fast an agent will answer, derived from the card's memory bandwidth. Pure; nothing here is measured.

Decoding one sequence is bound by memory: each token reads the weights once, and an engine reaches 0.75 to 0.9 of
the bandwidth's bound. Weights in host memory are read over PCIe for every token, which is what offloading costs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from msgspec import Struct

if TYPE_CHECKING:
    from agent_manager.checkpoints.facts import Facts
    from agent_manager.planning.base import Fit

LEAST_SHARE: Final = 0.75
MOST_SHARE: Final = 0.9
"""What engines reach of `bandwidth / resident weights` (published: 14B AWQ on cards of 288 and 448 GB/s)."""

LINK_BYTES_PER_S: Final = (13e9, 25e9)
"""What PCIe moves in practice: 4.0 x8 (the 16 GB cards) to 4.0 x16. With 8 GiB offloaded: 1.5 to 3 tokens/s."""

_GB: Final = 10**9
_BANDWIDTH_GB_PER_S: Final = {
    "RTX 3090": 936,
    "RTX 3090 Ti": 1008,
    "RTX 4060": 272,
    "RTX 4060 Ti": 288,
    "RTX 4070": 504,
    "RTX 4070 SUPER": 504,
    "RTX 4070 Ti SUPER": 672,
    "RTX 4080": 717,
    "RTX 4080 SUPER": 736,
    "RTX 4090": 1008,
    "RTX 5060": 448,
    "RTX 5060 Ti": 448,
    "RTX 5070": 672,
    "RTX 5070 Ti": 896,
    "RTX 5080": 960,
    "RTX 5090": 1792,
    "RTX A4000": 448,
    "RTX A5000": 768,
    "RTX A6000": 768,
    "L4": 300,
    "T4": 320,
}
"""From the makers' data sheets."""


class Speed(Struct, frozen=True, kw_only=True):
    """Tokens per second of one sequence with a short prompt: what to expect at least and at most."""

    low: float
    high: float


def card_bandwidth(name: str) -> float | None:
    """Bytes per second of the card's memory, by its product name (`NVIDIA GeForce RTX 5060 Ti`); None if unknown.

    A name stands for the whole rest of the product name: a laptop's GPU is another card.
    """
    product = name.removeprefix("NVIDIA ").removeprefix("Tesla ").removeprefix("GeForce ")
    bandwidth = _BANDWIDTH_GB_PER_S.get(product)
    return None if bandwidth is None else float(bandwidth * _GB)


def expected_tokens_per_s(facts: Facts, fit: Fit, bandwidth_bytes_per_s: float) -> Speed | None:
    """What to expect of one sequence on a card of that bandwidth; None when the fit knows no weights.

    Experts that a token does not use are not read. Offloaded weights are read over PCIe, whose speed is not known
    here: LINK_BYTES_PER_S gives the range.
    """
    if fit.weights_bytes is None:
        return None
    offloaded_bytes = max(0, facts.weights_bytes - fit.weights_bytes) if fit.cpu_offload_bytes else 0
    # An engine offloads whole layers, experts used or not: the idle share is the same on both sides.
    active = facts.active_bytes / facts.weights_bytes if facts.weights_bytes else 1.0
    card_s = fit.weights_bytes * active / bandwidth_bytes_per_s
    link_bytes = offloaded_bytes * active
    slow_link, fast_link = LINK_BYTES_PER_S
    slow_s = card_s / LEAST_SHARE + link_bytes / slow_link
    fast_s = card_s / MOST_SHARE + link_bytes / fast_link
    return Speed(low=1 / slow_s, high=1 / fast_s) if fast_s > 0 else None
