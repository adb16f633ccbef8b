"""What a simulated engine can be told to do wrong, so that what happens next can be tried without a GPU.

refuse-start            exits 1 at once, before it takes memory
oom                     runs out of memory while the weights load, in vLLM's words; exits 1
crash-at-load:PERCENT   dies when that much of the weights is loaded
hang-load               never finishes loading: no log line, no CPU time
crash-after:N           dies, exit 1, once it has answered N completions (0: as soon as it is ready)
hang                    takes completions and never answers; /health stays 200
lie-in-health           /health stays 200 while every completion gets HTTP 500
ignore-sigterm          only SIGKILL ends it
slow-stop:SECONDS       takes so much longer to exit
leave-workers           has a worker that holds the memory, and outlives the engine when that is killed
"""

from __future__ import annotations

import math

from msgspec import Struct
from msgspec.structs import replace


class Faults(Struct, frozen=True, kw_only=True):
    """The faults asked for; see the module. By default, none."""

    refuse_start: bool = False
    oom: bool = False
    crash_at_load_percent: int | None = None
    hang_load: bool = False
    crash_after: int | None = None
    hang: bool = False
    lie_in_health: bool = False
    ignore_sigterm: bool = False
    slow_stop_s: float = 0.0
    leave_workers: bool = False


_SWITCHES = ("hang", "hang-load", "ignore-sigterm", "leave-workers", "lie-in-health", "oom", "refuse-start")
_KNOWN = (*_SWITCHES, "crash-after:N", "crash-at-load:PERCENT", "slow-stop:SECONDS")


def parse_faults(text: str) -> Faults:
    """Read a comma-separated list of faults; empty for none. Raises ValueError for what it does not know."""
    faults = Faults()
    for item in filter(None, (part.strip() for part in text.split(","))):
        name, _, value = item.partition(":")
        if item in _SWITCHES:
            faults = replace(faults, **{name.replace("-", "_"): True})
        elif name == "crash-after":
            faults = replace(faults, crash_after=_whole(item, value))
        elif name == "crash-at-load":
            faults = replace(faults, crash_at_load_percent=_whole(item, value, at_most=100))
        elif name == "slow-stop":
            faults = replace(faults, slow_stop_s=_seconds(item, value))
        else:
            raise ValueError(f"no fault named '{item}'; there are {', '.join(_KNOWN)}")
    return faults


def _whole(item: str, value: str, at_most: float = math.inf) -> int:
    if not (value.isascii() and value.isdigit() and int(value) <= at_most):
        limit = "" if at_most == math.inf else f" of at most {at_most}"
        raise ValueError(f"'{item}' needs a whole number{limit} after the colon")
    return int(value)


def _seconds(item: str, value: str) -> float:
    try:
        seconds = float(value)
    except ValueError:
        seconds = -1.0
    if not math.isfinite(seconds) or seconds < 0:
        raise ValueError(f"'{item}' needs a number of seconds after the colon")
    return seconds
