"""The schema of models.yaml: what may be written where. Also a program that prints it as JSON schema.

    python -m agent_manager.catalog.schema            print it (editors read it from models.schema.json)
    python -m agent_manager.catalog.schema --check F  exit 1 when F differs from it

Each class is one mapping of the file. What a single value may be is in values.py and fields.py, what holds between
values (references, ports) in checks.py, how a problem is worded in wording.py.
"""

from __future__ import annotations

import sys
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, ConfigDict, Field

from agent_manager.catalog import values
from agent_manager.catalog.fields import (
    CLOSED,
    AgentName,
    Alias,
    Command,
    Commit,
    Context,
    Duration,
    EngineName,
    ExtraArg,
    Faults,
    Folder,
    Host,
    Image,
    KeepAlive,
    KeyVariable,
    KvCacheDtype,
    Name,
    Origin,
    ParserName,
    Repo,
    RuntimeName,
    Section,
    Size,
    Text,
    Utilization,
    Variable,
    WholeGib,
)


def _image(default: str | None) -> Any:  # noqa: ANN401 - as pydantic's own Field
    pinned = "The container image, pinned: a version tag or a digest, never `latest`."
    return Field(default=default, description=pinned)


def _command(*default: str) -> Any:  # noqa: ANN401 - as pydantic's own Field
    started = "How a host without containers starts it; our arguments follow."
    return Field(
        default_factory=lambda: list(default), min_length=1 if default else None, description=started
    )


def _section(description: str, alias: str | None = None) -> Any:  # noqa: ANN401 - as pydantic's own Field
    """A section with defaults for all it holds: left out, it is read as an empty one.

    Made as part of the whole; a default that is an object would have pydantic build its schema once more.
    """
    return Field(default_factory=dict, validate_default=True, alias=alias, description=description)


class EngineSection(Section):
    """An engine: how it is started, and how patient we are with it."""

    env: dict[Variable, Text] = Field(
        default_factory=dict,
        json_schema_extra=CLOSED,
        description="Environment variables for the engine, each value in quotes.",
    )
    stall_timeout: Duration = Field(
        default=900.0,
        description="How long a load may show no progress at all before it is given up: 15m by default.",
    )


class VllmSection(EngineSection):
    """vLLM on an NVIDIA GPU."""

    image: Image = _image("vllm/vllm-openai:v0.32.0")
    command: Command = _command("vllm", "serve")


class VllmCpuSection(EngineSection):
    """vLLM on the CPU."""

    image: Image = _image("vllm/vllm-openai-cpu:v0.32.0-x86_64")
    command: Command = _command("vllm", "serve")
    kv_cache: WholeGib = Field(default=4 * values.GIB, description="Memory for the KV cache, in whole GiB.")


class SimulatedSection(EngineSection):
    """The simulated engine: no model, generated text, everything else as vLLM does it."""

    image: Image | None = _image(None)
    command: Command = _command()

    load_seconds: float = Field(default=2.0, ge=0, le=3600, description="How long a load takes.")
    time_to_first_token_ms: float = Field(
        default=60.0, ge=0, le=600_000, description="How long a request waits for its first token."
    )
    inter_token_ms: float = Field(default=15.0, ge=0, le=60_000, description="The time between two tokens.")
    faults: dict[AgentName, Faults] = Field(
        default_factory=dict,
        json_schema_extra=CLOSED,
        description="What goes wrong on purpose, by agent; several are separated by commas.",
    )


class EnginesSection(Section):
    """Engines, by name. What is left out has its default."""

    vllm: VllmSection = _section("vLLM on an NVIDIA GPU: image, command and so on.")
    vllm_cpu: VllmCpuSection = _section("vLLM on the CPU: image, command and so on.", alias="vllm-cpu")
    simulated: SimulatedSection = _section("The simulated engine: how fast it is, and what goes wrong.")


class ModelSection(Section):
    """A checkpoint: a Hub repository, or a folder on this machine."""

    model_config = ConfigDict(json_schema_extra={"oneOf": [{"required": ["repo"]}, {"required": ["path"]}]})

    repo: Repo | None = Field(default=None, description="The Hub repository, such as Qwen/Qwen3-14B-AWQ.")
    revision: Commit | None = Field(
        default=None,
        description="The full commit; left out, the first pull finds it and models.lock.yaml keeps it.",
    )
    path: Folder | None = Field(
        default=None, description="A local folder instead: absolute, under ~/, or relative to this file."
    )
    tool_parser: ParserName | None = Field(
        default=None, description="vLLM's parser of the model's tool calls: hermes for Qwen2.5 and Qwen3."
    )
    reasoning_parser: ParserName | None = Field(
        default=None, description="vLLM's parser of the model's reasoning: qwen3 for Qwen3; none for Qwen2.5."
    )


class SamplingSection(Section):
    """Sampling defaults, for requests that do not say otherwise."""

    temperature: float | None = Field(
        default=None, ge=0, le=2, description="0 always takes the likeliest token; higher is more varied."
    )
    top_p: float | None = Field(
        default=None,
        gt=0,
        le=1,
        description="Sample from the likeliest tokens that together have this probability.",
    )
    top_k: int | None = Field(
        default=None,
        ge=-1,
        description="Sample from so many of the likeliest tokens; 0 or -1 is all of them.",
    )
    min_p: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="Drop tokens less likely than this share of the likeliest one's probability.",
    )
    presence_penalty: float | None = Field(
        default=None, ge=-2, le=2, description="Above 0: prefer tokens that have not appeared yet."
    )
    frequency_penalty: float | None = Field(
        default=None,
        ge=-2,
        le=2,
        description="Above 0: the more often a token has appeared, the less likely it gets.",
    )
    repetition_penalty: float | None = Field(
        default=None, gt=0, le=2, description="Above 1: less repetition of the prompt and the answer."
    )
    max_new_tokens: int | None = Field(
        default=None, ge=1, description="The most tokens an answer can have, whatever the request asks for."
    )


class AgentOverlay(Section):
    """What a profile changes of an agent; everything else stays. Names and ports never change."""

    model: Name | None = Field(default=None, description="A name under `models`.")
    context: Context | None = Field(
        default=None, description="The longest prompt and answer together, in tokens: 32768, or 32k."
    )
    sequences: int | None = Field(
        default=None,
        ge=1,
        le=1024,
        description="How many requests run at once; more wait their turn. 4 by default.",
    )
    kv_cache_dtype: KvCacheDtype | None = Field(
        default=None,
        description="How the KV cache is stored: fp8 takes half the memory of the default, auto.",
    )
    gpu_memory_utilization: Utilization = Field(
        default=None,
        description="The share of the card the engine takes; auto, the default, works it out.",
    )
    cpu_offload: Size | None = Field(
        default=None,
        description="How much of the weights stays in host memory, such as 8GiB. Very slow; 0 by default.",
    )
    eager: bool | None = Field(
        default=None,
        description="true skips compilation: loads faster, takes less memory, answers slower.",
    )
    thinking: bool | None = Field(
        default=None,
        description="Whether the model reasons before it answers; left out, its template decides.",
    )
    sampling: SamplingSection | None = Field(
        default=None,
        description="Sampling defaults, for requests that do not say otherwise.",
    )
    system: str | None = Field(
        default=None,
        min_length=1,
        description="The system prompt of requests that have none; the gateway adds it, and so does 'chat'.",
    )
    keep_alive: KeepAlive | None = Field(
        default=None,
        description="Under the gateway: how long it stays on the card with nothing to do; see gateway.keep_alive.",
    )
    extra_args: Annotated[list[ExtraArg], AfterValidator(values.begin_with_flag)] = Field(
        default_factory=list,
        description="More flags for vLLM, after ours: [--flag, value]; none that has a key here.",
    )


class AgentSection(AgentOverlay):
    """An agent: a name and a port that clients know, and the model behind them."""

    model: Name = Field(description="A name under `models`.")
    port: int = Field(
        ge=1024,
        le=65435,
        description="Where clients reach it, on loopback; the engine itself listens 100 above.",
    )
    context: Context = Field(description="The longest prompt and answer together, in tokens: 32768, or 32k.")
    aliases: list[Alias] = Field(
        default_factory=list,
        description="Other model names that mean this agent on the gateway's common port.",
    )


class GatewaySection(Section):
    """The gateway: one door for all agents, which swaps as requests come."""

    host: Host = Field(
        default="127.0.0.1",
        description="Where it listens. Any address but loopback needs a key: api_key_env or api_key_file.",
    )
    port: int = Field(
        default=8080, ge=1024, le=65535, description="The common port, where the request's model decides."
    )
    api_key_env: KeyVariable | None = Field(
        default=None, description="The environment variable that holds the key clients must show."
    )
    api_key_file: Folder | None = Field(default=None, description="A file that holds that key instead.")
    origins: list[Origin] = Field(
        default_factory=list,
        description="Web pages that may use it, such as http://localhost:3000; none by default.",
    )
    keep_alive: KeepAlive = Field(
        default=-1.0,
        description="How long an agent stays on the card with nothing to do: 0, 5m, or -1 (the default) for always.",
    )
    max_wait: Duration = Field(
        default=300.0,
        description="The longest wait for a busy agent to make room, beside the swaps themselves: 5m by default.",
    )
    default: AgentName | None = Field(
        default=None,
        description="The agent that comes back when the one on the card was idle for its keep_alive.",
    )
    preload: AgentName | None = Field(default=None, description="The agent to put on the card at the start.")
    at_exit: Literal["stop", "leave"] = Field(
        default="stop",
        description="What becomes of the engine when the gateway ends: stop, or leave it for the next one.",
    )
    include_usage: bool = Field(
        default=False, description="Ask engines for token counts in every stream, as stream_options would."
    )


class ProfileSection(Section):
    """An overlay, chosen with --profile: lists only what differs."""

    engine: EngineName | None = Field(default=None, description="The engine of this profile.")
    runtime: RuntimeName | None = Field(default=None, description="The runtime of this profile.")
    agents: dict[AgentName, AgentOverlay] = Field(
        default_factory=dict, json_schema_extra=CLOSED, description="What changes, by agent."
    )


class CatalogSection(Section):
    """The whole of models.yaml."""

    version: Literal[1] = Field(description="The version of this format.")
    engine: EngineName | None = Field(
        default=None, description="The engine, unless --engine or a profile says otherwise."
    )
    runtime: RuntimeName | None = Field(
        default=None,
        description="Where engines run, unless --runtime or a profile says otherwise.",
    )
    engines: EnginesSection = _section("Engines, by name.")
    models: dict[Name, ModelSection] = Field(
        min_length=1, json_schema_extra=CLOSED, description="Checkpoints, by a name of your choice."
    )
    agents: dict[AgentName, AgentSection] = Field(
        min_length=1,
        json_schema_extra=CLOSED,
        description="Agents, by the name that clients send as the model.",
    )
    gateway: GatewaySection = _section("The gateway that 'agent-manager serve' runs.")
    profiles: dict[Name, ProfileSection] = Field(
        default_factory=dict,
        json_schema_extra=CLOSED,
        description="Overlays on the agents, by a name for --profile.",
    )


_FROM_ENVIRONMENT = {"type": "string", "pattern": r"\$\{env:[A-Za-z_][A-Za-z0-9_]*\}"}


def json_schema() -> dict[str, Any]:
    """The schema as JSON schema 2020-12, for editors: every value may also come from `${env:NAME}`."""
    schema = CatalogSection.model_json_schema()
    for section in (schema, *schema["$defs"].values()):
        properties = section.get("properties", {})
        section["properties"] = {name: _for_editors(field) for name, field in properties.items()}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **schema,
        "title": "models.yaml",
    }


def _for_editors(field: dict[str, Any]) -> dict[str, Any]:
    """A property without pydantic's titles; null and `${env:NAME}` beside what it is."""
    outer = {key: field[key] for key in ("description",) if key in field}
    inner = {key: value for key, value in field.items() if key not in {"description", "title", "default"}}
    options = [option for option in inner.pop("anyOf", []) if option != {"type": "null"}] or [inner]
    simple = not any(
        {"$ref", "patternProperties"} & option.keys() or option.get("type") == "array" for option in options
    )
    return {**outer, "anyOf": [*options, {"type": "null"}, *([_FROM_ENVIRONMENT] if simple else [])]}


def main(arguments: list[str]) -> int:
    """Print the JSON schema, or with `--check FILE` compare it with a file; the exit code."""
    import json  # noqa: PLC0415 - only this program needs it, and each verb imports this module
    from pathlib import Path  # noqa: PLC0415 - likewise

    text = json.dumps(json_schema(), indent=2, ensure_ascii=False) + "\n"
    if not arguments:
        sys.stdout.write(text)
        return 0
    option, file = arguments
    if option != "--check":
        sys.stderr.write(f"unknown option {option}\n")
        return 2
    if Path(file).read_text(encoding="utf-8") == text:
        return 0
    sys.stderr.write(f"{file} is stale: run 'python -m agent_manager.catalog.schema > {file}'\n")
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
