"""What `launch` costs in Docker, beside `docker compose up -d` on the very file that it wrote.

The yardstick is what a person does without agent-manager: `docker compose up -d`, then `/health` every 50 ms until
it answers. Both start the simulated engine in the same image, with nothing on the card before, in turns. The
command's time is all of it: Python, the catalog, the plan, the container, following the load, one completion, which
the engine answers at once. What that adds is a fixed time, most of it Python importing three libraries, and the
yardstick for it is Python doing just that. As a ratio it is given at a load of 10 s, a fifth of what vLLM takes in a
container here with a model of one megabyte.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from benchmarks.http import free_port, healthy
from benchmarks.table import Row, SkippedError, seconds_of
from tests.docker.daemon import NoDaemonError, default_folder, docker_daemon
from tests.docker.debian import StepFailedError, compose_binary
from tests.docker.images import SIMULATED, build_images

if TYPE_CHECKING:
    from collections.abc import Mapping

RUNS = {2.0: 7, 10.0: 3}
"""How many turns for each load, in seconds."""
RATIO_BOUND = 1.1
LIBRARIES = "import docker, pydantic, typer"
LIBRARIES_BOUND = 1.5
POLL_S = 0.05
AGENT = "benchmark"

CATALOG = """\
version: 1
engine: simulated
engines:
  simulated: {{image: "{image}", load_seconds: {load_s}, time_to_first_token_ms: 0}}
models:
  small: {{repo: Qwen/Qwen2.5-7B-Instruct-AWQ}}
agents:
  {agent}: {{model: small, port: {port}, context: 4k, sequences: 4}}
"""


def measure() -> list[Row]:
    """Raises SkippedError where there is no Docker and none can be started, or no compose."""
    cache = default_folder().parent
    try:
        with docker_daemon() as host:
            compose = compose_binary(cache)
            if compose is None:
                raise SkippedError("docker compose v2 is not installed")
            build_images(host, cache)
            short, long = (_turns(load_s, runs, host, compose) for load_s, runs in RUNS.items())
    except (NoDaemonError, StepFailedError) as error:
        raise SkippedError(str(error)) from error
    return [_beyond(short), _ratio(long)]


class Turn(NamedTuple):
    """One after the other, in seconds: `launch`, compose until it answers, the import of the libraries."""

    launch_s: float
    up_s: float
    import_s: float


def _beyond(turns: list[Turn]) -> Row:
    import_s = statistics.median(turn.import_s for turn in turns)
    beyond = statistics.median((turn.launch_s - turn.up_s) / turn.import_s for turn in turns)
    whole = statistics.median(turn.launch_s / turn.up_s for turn in turns)
    return Row(
        what="`agent-manager launch` in Docker, beyond compose",
        figure=f"{beyond:.2f} ×",
        yardstick=f"`python -c '{LIBRARIES}'` ({import_s * 1000:.0f} ms); load of 2 s: {whole:.2f} × compose in all",
        bound=f"≤ {LIBRARIES_BOUND} ×",
        kept=beyond <= LIBRARIES_BOUND,
    )


def _ratio(turns: list[Turn]) -> Row:
    measured = statistics.median(turn.launch_s / turn.up_s for turn in turns)
    up_s = statistics.median(turn.up_s for turn in turns)
    return Row(
        what="`agent-manager launch` in Docker",
        figure=f"{measured:.2f} ×",
        yardstick=f"`docker compose up -d`, then `/health` every 50 ms ({up_s:.1f} s); load of 10 s",
        bound=f"≤ {RATIO_BOUND} ×",
        kept=measured <= RATIO_BOUND,
    )


def _turns(load_s: float, runs: int, host: str, compose: Path) -> list[Turn]:
    with tempfile.TemporaryDirectory() as name:
        folder, port = Path(name), free_port()
        catalog = CATALOG.format(image=SIMULATED, load_s=load_s, agent=AGENT, port=port)
        (folder / "models.yaml").write_text(catalog)
        environ = {
            **os.environ,
            "AGENT_MANAGER_CATALOG": str(folder / "models.yaml"),
            "AGENT_MANAGER_RUNTIME": "docker",
            "AGENT_MANAGER_STATE_DIR": str(folder / "state"),
            "DOCKER_HOST": host,
        }
        typed = {**environ, "DOCKER_CONFIG": str(folder / "docker")}
        file = folder / "state" / "compose" / f"{AGENT}.yaml"
        by_hand = ["docker", "compose", "--file", str(file)]
        plugins = folder / "docker" / "cli-plugins"
        plugins.mkdir(parents=True)
        (plugins / "docker-compose").symlink_to(compose)
        _launch(environ)  # warms what is cached, and writes the file
        libraries = [sys.executable, "-c", LIBRARIES]
        return [
            Turn(_launch(environ), _up(by_hand, port, typed), seconds_of(libraries, os.environ))
            for _ in range(runs)
        ]


def _launch(environ: Mapping[str, str]) -> float:
    program = str(Path(sys.executable).with_name("agent-manager"))
    try:
        return seconds_of([program, "launch", AGENT], environ)
    finally:
        seconds_of([program, "stop", "--drain-timeout", "0"], environ)


def _up(compose: list[str], port: int, environ: Mapping[str, str]) -> float:
    began = time.perf_counter()
    seconds_of([*compose, "up", "--detach"], environ)
    try:
        while not healthy(port):
            time.sleep(POLL_S)
        return time.perf_counter() - began
    finally:
        seconds_of([*compose, "down", "--timeout", "0"], environ)
