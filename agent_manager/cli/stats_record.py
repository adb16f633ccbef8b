"""A session of `gpu-stats` as a CSV file: one row for each sample, written at once, and read back.

Units are in the columns' names. What was not known is an empty field. Tokens and requests are summed over the
agents, latencies and shares are those of the worst; `arrived`, `left` and `swap_seconds` stand in the first row
after a swap.
"""

from __future__ import annotations

import csv
import math
from datetime import datetime
from typing import TYPE_CHECKING, Any, Self

from msgspec import Struct
from msgspec.structs import fields

from agent_manager.errors import HostNotReady, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path
    from typing import TextIO

    from agent_manager.swap.stats import StatsSample

Value = int | float | str | bool | None


class Row(Struct, frozen=True, kw_only=True):
    """One sample, as it is recorded; the fields are the columns.

    `agents` are names with a `+` between them, such as `architect+dev`; empty when no agent is on the card.
    """

    time: datetime
    card: str | None = None
    simulated: bool | None = None
    total_bytes: int | None = None
    used_bytes: int | None = None
    utilization_pct: float | None = None
    memory_utilization_pct: float | None = None
    temperature_c: float | None = None
    power_w: float | None = None
    power_limit_w: float | None = None
    sm_clock_mhz: float | None = None
    memory_clock_mhz: float | None = None
    fan_pct: float | None = None
    agents: str | None = None
    running: int | None = None
    waiting: int | None = None
    prompt_tokens_per_s: float | None = None
    generation_tokens_per_s: float | None = None
    time_to_first_token_s: float | None = None
    inter_token_latency_s: float | None = None
    kv_cache_usage: float | None = None
    prefix_cache_hit_rate: float | None = None
    arrived: str | None = None
    left: str | None = None
    swap_seconds: float | None = None


COLUMNS = tuple(field.name for field in fields(Row))
_OF_GPU = COLUMNS[COLUMNS.index("total_bytes") : COLUMNS.index("agents")]
_OF_TRAFFIC: dict[str, Callable[[Iterable[Any]], Any]] = {
    "running": sum,
    "waiting": sum,
    "prompt_tokens_per_s": sum,
    "generation_tokens_per_s": sum,
    "time_to_first_token_s": max,
    "inter_token_latency_s": max,
    "kv_cache_usage": max,
    "prefix_cache_hit_rate": min,
}
_WORDS = ("card", "agents", "arrived", "left")
_WHOLE = ("total_bytes", "used_bytes", "running", "waiting")


class Recorder:
    """Adds rows to the recording at `path`, which is begun when it is not there. A context manager.

    Entering it raises UsageError when the file is something else, and then leaves it as it is; HostNotReady when
    it cannot be written. So does `write`, on a full disk.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen: datetime | None = None

    def __enter__(self) -> Self:
        try:
            self._file: TextIO = self._path.open("a+", encoding="utf-8", newline="")
        except OSError as error:
            raise _unusable(self._path, error) from error
        try:
            self._begin()
        except BaseException:
            self._file.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def write(self, sample: StatsSample) -> None:
        """Add a row; it is in the file when this returns. Swaps that the first sample knows are of before."""
        newest = sample.swaps[0].at if sample.swaps else None
        seen = self._seen or newest or sample.at
        row = row_of(sample, seen)
        self._seen = max(seen, newest or seen)
        try:
            self._add([_text(getattr(row, name)) for name in COLUMNS])
            self._file.flush()
        except OSError as error:
            raise _unusable(self._path, error) from error

    def _add(self, fields: Sequence[str]) -> None:
        csv.writer(self._file, lineterminator="\n").writerow(fields)

    def _begin(self) -> None:
        self._file.seek(0)
        try:
            header = self._file.readline()
        except ValueError:
            header = "not text"
        if not header:
            self._add(COLUMNS)
        elif header.rstrip("\n") != ",".join(COLUMNS):
            raise _not_a_recording(self._path)
        elif not self._path.read_bytes().endswith(b"\n"):
            self._file.write("\n")  # the machine went down in the middle of a row


def row_of(sample: StatsSample, since: datetime) -> Row:
    """What is recorded of a sample; a swap only if it was done after `since`."""
    gpu, told = sample.gpu, [agent.traffic for agent in sample.agents if agent.traffic]
    facts: dict[str, Any] = {}
    if gpu is not None:
        facts = {name: getattr(gpu, name) for name in _OF_GPU} | {
            "card": gpu.name,
            "simulated": gpu.simulated,
        }
    for name, together in _OF_TRAFFIC.items():
        values = [value for traffic in told if (value := getattr(traffic, name)) is not None]
        facts[name] = together(values) if values else None
    if sample.swaps and sample.swaps[0].at > since:
        swap = sample.swaps[0]
        facts |= {"arrived": swap.arrived, "left": swap.left, "swap_seconds": swap.seconds}
    return Row(time=sample.at, agents="+".join(agent.names for agent in sample.agents) or None, **facts)


def read(path: Path) -> tuple[Row, ...]:
    """The rows of a recording, oldest first; empty fields are None. Rows that are cut off are left out.

    Raises UsageError when there is no such file, or when it is something else, naming the line.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            # Line by line: a row that is cut off within quotes must not swallow those after it.
            lines = [next(csv.reader([line])) for line in file]
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}", where=str(path)) from error
    except (ValueError, csv.Error) as error:
        raise _not_a_recording(path) from error
    if not lines or tuple(lines[0]) != COLUMNS:
        raise _not_a_recording(path)
    rows = []
    for number, line in enumerate(lines[1:], start=2):
        if len(line) < len(COLUMNS):
            continue
        try:
            rows.append(_row(line))
        except ValueError as error:
            message = f"{path}: line {number} is no sample: {error}"
            raise UsageError(message, hint="remove that line", where=str(path)) from error
    return tuple(rows)


def _row(line: Sequence[str]) -> Row:
    values: dict[str, Any] = {name: text for name, text in zip(COLUMNS, line, strict=False) if text}
    for name, text in values.items():
        if name == "time":
            values[name] = datetime.fromisoformat(text)
        elif name == "simulated":
            values[name] = text == "true"
        elif name not in _WORDS:
            values[name] = int(text) if name in _WHOLE else _finite(text)
    if "time" not in values or values["time"].tzinfo is None:
        raise ValueError("it has no time, or none with a zone")
    return Row(**values)


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"'{text}' is no number")
    return number


def _text(value: Value | datetime) -> str:
    match value:
        case None:
            return ""
        case bool():
            return str(value).lower()
        case float():
            return f"{value:.6g}"
        case datetime():
            return value.isoformat(timespec="milliseconds")
        case _:
            return " ".join(str(value).split())


def _not_a_recording(path: Path) -> UsageError:
    return UsageError(
        f"{path} is not a recording of gpu-stats, or one of another version",
        hint="choose another file; gpu-stats --csv FILE makes one",
        where=str(path),
    )


def _unusable(path: Path, error: OSError) -> HostNotReady:
    return HostNotReady(
        f"{path}: {error.strerror or error}", hint="choose a file that can be written", where=str(path)
    )
