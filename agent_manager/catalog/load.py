"""Finds models.yaml, reads it, and raises every problem at once or returns the catalog."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agent_manager.catalog.agents import Agent, Catalog, EngineSettings, Gateway, Model, Simulation
from agent_manager.catalog.document import Document, is_there, read_document, read_text
from agent_manager.catalog.lockfile import read_lock
from agent_manager.catalog.values import did_you_mean, shown
from agent_manager.errors import CatalogInvalid, UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pydantic import BaseModel

    from agent_manager.catalog.schema import (
        AgentOverlay,
        AgentSection,
        CatalogSection,
        EnginesSection,
        GatewaySection,
        ModelSection,
        SimulatedSection,
        VllmCpuSection,
        VllmSection,
    )

FILE_NAME = "models.yaml"
ENVIRONMENT_VARIABLE = "AGENT_MANAGER_CATALOG"
DEFAULT_SEQUENCES = 4


def packaged_catalog() -> Path:
    """The catalog that comes with agent-manager: in an installed package, else at the top of its repository."""
    installed = Path(__file__).with_name(FILE_NAME)
    return installed if installed.is_file() else Path(__file__).parents[2] / FILE_NAME


def find_catalog(explicit: Path | None, *, environ: Mapping[str, str]) -> Path:
    """The catalog to use: `explicit` (--catalog), the environment's, ./models.yaml, the user's, the packaged one.

    Raises UsageError when the one that was asked for, or in the end the packaged one, does not exist.
    """
    named = environ.get(ENVIRONMENT_VARIABLE)
    if explicit is not None:
        return _existing(explicit, "--catalog")
    if named:
        return _existing(_expanded(named, environ), f"${ENVIRONMENT_VARIABLE}")
    home = environ.get("HOME")
    configuration = environ.get("XDG_CONFIG_HOME") or (home and f"{home}/.config")
    if is_there(Path(FILE_NAME)):
        return Path(FILE_NAME)
    if configuration and is_there(Path(configuration, "agent-manager", FILE_NAME)):
        return Path(configuration, "agent-manager", FILE_NAME)
    return _existing(packaged_catalog(), "the packaged catalog")


def _expanded(written: str, environ: Mapping[str, str]) -> Path:
    """The path with a leading `~` replaced by $HOME. Raises UsageError when there is none."""
    if not written.startswith("~"):
        return Path(written)
    if "HOME" not in environ:
        raise UsageError(
            f"'{shown(written)}' begins with ~, and HOME is not set", hint="write the whole path"
        )
    return Path(environ["HOME"] + written[1:])


def _existing(path: Path, named_by: str) -> Path:
    if is_there(path):
        return path
    raise UsageError(
        f"no catalog at {path} ({named_by})",
        hint="name an existing file, such as a copy of the models.yaml that agent-manager comes with",
        where=str(path),
    )


def load_catalog(
    path: Path, *, profile: str | None = None, environ: Mapping[str, str], state_root: Path | None = None
) -> Catalog:
    """Read the catalog at `path`, with `profile` laid over its agents. Blocks for reading two or three files.

    `environ` answers `${env:NAME}`. Revisions that the catalog leaves out come from models.lock.yaml, beside it
    or in `state_root`. Raises CatalogInvalid with every problem of the file, of all its profiles and of the lock
    file; UsageError when a file cannot be read or there is no such profile.
    """
    document = read_document(read_text(path), file=str(path), environ=environ)
    commits: Mapping[str, str] = {}
    try:
        commits = read_lock(path, state_root=state_root)
    except CatalogInvalid as invalid:
        document.problems.update(dict.fromkeys(invalid.problems))
    section = _validated(document)
    overlay = section.profiles.get(profile) if profile is not None else None
    if profile is not None and overlay is None:
        hint = did_you_mean(profile, section.profiles) or "the catalog has no profiles"
        raise UsageError(f"no profile named '{shown(profile)}' in {path}", hint=hint, where="profiles")
    models = {name: _model(name, model, path, environ, commits) for name, model in section.models.items()}
    overlays = overlay.agents if overlay else {}
    return Catalog(
        source=path.absolute(),
        profile=profile,
        profiles=tuple(section.profiles),
        engine=(overlay and overlay.engine) or section.engine,
        runtime=(overlay and overlay.runtime) or section.runtime,
        engines=_engines(section.engines),
        models=models,
        agents={
            name: _agent(name, agent, overlays.get(name), models) for name, agent in section.agents.items()
        },
        gateway=_gateway(section.gateway, path, environ),
    )


def _validated(document: Document) -> CatalogSection:
    """The document as the schema understands it. Raises CatalogInvalid."""
    from pydantic import ValidationError  # noqa: PLC0415 - slow to import; --help needs no catalog

    from agent_manager.catalog import checks, schema, wording  # noqa: PLC0415 - they import pydantic

    if document.complete and not isinstance(document.data, dict):
        _add_no_mapping(document)
    if not isinstance(document.data, dict) or not document.complete:
        document.raise_problems()
    checks.check(document)
    try:
        section = schema.CatalogSection.model_validate(document.data)
    except ValidationError as error:
        wording.report(document, error.errors(include_url=False))
        document.raise_problems()
        raise
    document.raise_problems()
    return section


def _add_no_mapping(document: Document) -> None:
    hint = "begin with 'version: 1', then models and agents; the models.yaml that comes along shows how"
    empty = document.data is None
    message = "the file is empty" if empty else "expected 'key: value' lines"
    document.report((), message, hint)


def _model(
    name: str, section: ModelSection, catalog: Path, environ: Mapping[str, str], commits: Mapping[str, str]
) -> Model:
    return Model(
        name=name,
        repo=section.repo,
        revision=section.revision or (commits.get(section.repo) if section.repo else None),
        path=_folder(section.path, catalog, environ) if section.path else None,
        tool_parser=section.tool_parser,
        reasoning_parser=section.reasoning_parser,
    )


def _folder(written: str, catalog: Path, environ: Mapping[str, str]) -> Path:
    """The folder a catalog means: `~` is the user's home, a relative one starts at the catalog's own folder."""
    return Path(os.path.normpath(catalog.absolute().parent / _expanded(written, environ)))


def _agent(
    name: str, section: AgentSection, overlay: AgentOverlay | None, models: Mapping[str, Model]
) -> Agent:
    """The agent with its overlay: what the overlay sets wins, sampling value by value."""
    fields = _written(section)
    sampling = _written(section.sampling)
    if overlay is not None:
        fields |= _written(overlay)
        sampling |= _written(overlay.sampling)
    return Agent(
        name=name,
        model=models[fields["model"]],
        port=fields["port"],
        context=fields["context"],
        sequences=fields.get("sequences", DEFAULT_SEQUENCES),
        kv_cache_dtype=fields.get("kv_cache_dtype", "auto"),
        utilization=fields.get("gpu_memory_utilization"),
        cpu_offload_bytes=fields.get("cpu_offload", 0),
        eager=fields.get("eager", False),
        thinking=fields.get("thinking"),
        sampling=sampling,
        system=fields.get("system"),
        extra_args=tuple(fields.get("extra_args", ())),
        aliases=tuple(section.aliases),
        keep_alive_s=fields.get("keep_alive"),
    )


def _gateway(section: GatewaySection, catalog: Path, environ: Mapping[str, str]) -> Gateway:
    return Gateway(
        host=section.host,
        port=section.port,
        api_key_env=section.api_key_env,
        api_key_file=_folder(section.api_key_file, catalog, environ) if section.api_key_file else None,
        origins=tuple(section.origins),
        keep_alive_s=section.keep_alive,
        max_wait_s=section.max_wait,
        default=section.default,
        preload=section.preload,
        at_exit=section.at_exit,
        include_usage=section.include_usage,
    )


def _written(section: BaseModel | None) -> dict[str, Any]:
    """What the file says, without defaults; model_dump would build a serializer for each class first."""
    if section is None:
        return {}
    fields = type(section).model_fields
    return {name: getattr(section, name) for name in fields if name in section.model_fields_set}


def _engines(section: EnginesSection) -> dict[str, EngineSettings]:
    simulated = section.simulated
    simulation = Simulation(
        load_seconds=simulated.load_seconds,
        time_to_first_token_ms=simulated.time_to_first_token_ms,
        inter_token_ms=simulated.inter_token_ms,
        faults=simulated.faults,
    )
    return {
        "vllm": _engine("vllm", section.vllm),
        "vllm-cpu": _engine("vllm-cpu", section.vllm_cpu, kv_cache_bytes=section.vllm_cpu.kv_cache),
        "simulated": _engine("simulated", simulated, simulation=simulation),
    }


def _engine(
    name: str,
    section: VllmSection | VllmCpuSection | SimulatedSection,
    *,
    kv_cache_bytes: int | None = None,
    simulation: Simulation | None = None,
) -> EngineSettings:
    return EngineSettings(
        name=name,
        command=tuple(section.command),
        image=section.image,
        kv_cache_bytes=kv_cache_bytes,
        stall_timeout_s=section.stall_timeout,
        env=section.env,
        simulation=simulation,
    )
