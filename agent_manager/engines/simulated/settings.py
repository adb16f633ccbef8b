"""How a simulated engine is told to behave: environment variables, since its command line is vLLM's.

Cheap to import: whoever renders the engine's environment needs the names only.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec import Struct, field

from agent_manager.catalog.agents import Simulation
from agent_manager.engines.simulated.faults import Faults, parse_faults
from agent_manager.gpu.simulated import CARD_ID
from agent_manager.state import StateDir

if TYPE_CHECKING:
    from collections.abc import Mapping

CARD_DIR = "AGENT_MANAGER_SIM_CARD_DIR"
"""The card's folder, `<state>/cards/SIM-0`; left out, that of this user."""
LOAD_SECONDS = "AGENT_MANAGER_SIM_LOAD_SECONDS"
"""From start to ready; 0 is as fast as the program can."""
TIME_TO_FIRST_TOKEN_MS = "AGENT_MANAGER_SIM_TTFT_MS"  # noqa: S105 - a token of text, not a secret
INTER_TOKEN_MS = "AGENT_MANAGER_SIM_ITL_MS"  # noqa: S105 - a token of text, not a secret
FAULT = "AGENT_MANAGER_SIM_FAULT"
"""What is to go wrong, such as `crash-after:3`; see faults.py."""
WEIGHTS_BYTES = "AGENT_MANAGER_SIM_WEIGHTS_BYTES"
"""What the log says the weights take; left out, 60 % of the claim."""
KV_TOKENS = "AGENT_MANAGER_SIM_KV_TOKENS"
"""How many tokens the log and the metrics say the KV cache holds; left out, two full contexts."""
INSTANCE = "AGENT_MANAGER_INSTANCE"
"""The instance's id; it names the engine's claim."""
DEV_MODE = "VLLM_SERVER_DEV_MODE"
"""vLLM's own: 1 adds the sleep endpoints (with `--enable-sleep-mode`)."""

_DEFAULTS = Simulation()


class Settings(Struct, frozen=True, kw_only=True):
    """What the environment asks for. Seconds, bytes; None where it leaves the choice to the engine."""

    card_dir: Path
    instance: str = "simulated"
    load_s: float = _DEFAULTS.load_seconds
    time_to_first_token_s: float = _DEFAULTS.time_to_first_token_ms / 1000
    inter_token_s: float = _DEFAULTS.inter_token_ms / 1000
    faults: Faults = field(default_factory=Faults)
    weights_bytes: int | None = None
    kv_tokens: int | None = None
    dev_mode: bool = False


def from_environment(environ: Mapping[str, str]) -> Settings:
    """Read the settings. Raises ValueError that names the variable."""
    given_dir = environ.get(CARD_DIR)
    try:
        faults = parse_faults(environ.get(FAULT, ""))
    except ValueError as error:
        raise ValueError(f"{FAULT}: {error}") from None
    first_token_ms = _number(environ, TIME_TO_FIRST_TOKEN_MS, _DEFAULTS.time_to_first_token_ms)
    inter_token_ms = _number(environ, INTER_TOKEN_MS, _DEFAULTS.inter_token_ms)
    return Settings(
        card_dir=Path(given_dir) if given_dir else StateDir.from_environment().card(CARD_ID),
        instance=environ.get(INSTANCE) or "simulated",
        load_s=_number(environ, LOAD_SECONDS, _DEFAULTS.load_seconds),
        time_to_first_token_s=first_token_ms / 1000,
        inter_token_s=inter_token_ms / 1000,
        faults=faults,
        weights_bytes=_count(environ, WEIGHTS_BYTES),
        kv_tokens=_count(environ, KV_TOKENS),
        dev_mode=environ.get(DEV_MODE) == "1",
    )


def _number(environ: Mapping[str, str], name: str, default: float) -> float:
    text = environ.get(name)
    if not text:
        return default
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not math.isfinite(number) or number < 0:
        raise ValueError(f"{name}: '{text}' is not a number of at least 0")
    return number


def _count(environ: Mapping[str, str], name: str) -> int | None:
    text = environ.get(name)
    if not text:
        return None
    if not (text.isascii() and text.isdigit()):
        raise ValueError(f"{name}: '{text}' is not a whole number")
    return int(text)
