"""What single values of models.yaml may look like: sizes, contexts, durations, names, images, flags, faults.

Each `parse_` function takes what YAML gave, returns what the program uses, and raises RefusedError with what is
wrong and what to do. Whatever ends in an argv, a path or a label is matched against an allow-list here, so that
no name can add a flag, a folder or a line.
"""

from __future__ import annotations

import difflib
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

GIB = 1 << 30

NAME = r"[a-z0-9]([a-z0-9._-]{0,30}[a-z0-9])?"
AGENT_NAME = r"[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?"
COMMIT = r"[0-9a-f]{40}"
SIZE = r"[0-9]{1,6}(\.[0-9]{1,3})? ?(KiB|MiB|GiB|kB|MB|GB)"
CONTEXT = r"[1-9][0-9]{0,5}[kK]"
DURATION = r"[0-9]{1,6}(\.[0-9]{1,3})?(s|m|h)"
ALIAS = r"\w[\w.:/-]{0,95}"
ORIGIN = r"https?://[a-zA-Z0-9.-]{1,253}(:[0-9]{1,5})?"
HOST = r"[0-9a-fA-F:.]{2,45}|localhost"
PARSER_NAME = r"[a-z0-9][a-z0-9_.-]{0,63}"
REPO = r"\w([\w.-]{0,94}\w)?/\w([\w.-]{0,94}\w)?"
VARIABLE = r"[A-Za-z_][A-Za-z0-9_]*"
IMAGE = (
    r"(?P<name>[a-z0-9]+([._-]+[a-z0-9]+)*(:[0-9]{1,5}(?=/))?(/[a-z0-9]+([._-]+[a-z0-9]+)*)*)"
    r"(:(?P<tag>\w[\w.-]{0,127}))?(@(?P<digest>sha256:[0-9a-f]{64}))?"
)
FAULT = (
    r"refuse-start|oom|crash-after:[0-9]{1,6}|crash-at-load:(100|[0-9]{1,2})|hang-load|hang|ignore-sigterm"
    r"|slow-stop:[0-9]{1,4}(\.[0-9]{1,3})?|lie-in-health|leave-workers"
)
FAULT_NAMES = (
    "refuse-start, oom, crash-after:REQUESTS, crash-at-load:PERCENT, hang-load, hang, ignore-sigterm, "
    "slow-stop:SECONDS, lie-in-health, leave-workers"
)

MAX_SHOWN_CHARS = 60
MAX_CONTEXT = 1 << 24
MAX_DURATION_S = 86_400.0

_UNITS = {"kB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": GIB}
_SECONDS = {"s": 1, "m": 60, "h": 3600}

RENDERED_FLAGS = {
    "--model": "use the agent's `model`",
    "--served-model-name": "the agent's name is the model's name to clients",
    "--host": "engines listen on loopback",
    "--port": "use the agent's `port`",
    "--uds": "use the agent's `port`",
    "--grpc": "engines speak HTTP",
    "--grpc-port": "engines speak HTTP",
    "--headless": "an engine answers for itself",
    "--root-path": "addresses end in /v1",
    "--ssl-keyfile": "engines speak plain HTTP on loopback",
    "--ssl-certfile": "engines speak plain HTTP on loopback",
    "--api-key": "engines hold no secret and listen on loopback",
    "--hf-token": "engines hold no secret; weights are pulled beforehand",
    "--config": "write its settings here",
    "--revision": "use the model's `revision`",
    "--max-model-len": "use the agent's `context`",
    "--max-num-seqs": "use the agent's `sequences`",
    "--gpu-memory-utilization": "use the agent's `gpu_memory_utilization`",
    "--kv-cache-memory-bytes": "use `gpu_memory_utilization`, or `kv_cache` of the engine vllm-cpu",
    "--kv-cache-dtype": "use the agent's `kv_cache_dtype`",
    "--cpu-offload-gb": "use the agent's `cpu_offload`",
    "--language-model-only": "it is set for checkpoints that see",
    "--enforce-eager": "use the agent's `eager`",
    "--override-generation-config": "use the agent's `sampling`",
    "--default-chat-template-kwargs": "use the agent's `thinking`",
    "--enable-auto-tool-choice": "use the model's `tool_parser`",
    "--tool-call-parser": "use the model's `tool_parser`",
    "--reasoning-parser": "use the model's `reasoning_parser`",
    "--enable-sleep-mode": "agent-manager decides about it",
    "--shutdown-timeout": "agent-manager sets it for draining",
    "--disable-access-log-for-endpoints": "agent-manager sets it for health checks",
}
"""vLLM flags that `extra_args` may not hold: agent-manager renders them or rules them out. What to do instead."""


_INT = re.compile(r"[-+]?[0-9]{1,18}", re.ASCII)
_FLOAT = re.compile(r"[-+]?(\.[0-9]{1,30}|[0-9]{1,30}(\.[0-9]{0,30})?)([eE][-+]?[0-9]{1,3})?", re.ASCII)
_WORDS: dict[str, bool | None] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}


class Interpolated(str):
    """A value that came from the environment, whole or in part: text, until its field says otherwise."""

    __slots__ = ()


def plain_value(text: str) -> object:
    """An unquoted scalar by YAML 1.2's core schema: null, boolean, integer, number or text."""
    if text in _WORDS:
        return _WORDS[text]
    if _INT.fullmatch(text):
        return int(text)
    if _FLOAT.fullmatch(text):
        return float(text)
    return text


def resolved(value: object) -> object:
    """The value, read as if unquoted when it came from the environment."""
    return plain_value(value) if isinstance(value, Interpolated) else value


class RefusedError(ValueError):
    """A value that cannot be used. `message`: what is wrong, one line; `hint`: what to do."""

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


def shown(text: str, limit: int = MAX_SHOWN_CHARS) -> str:
    """The text as it can be printed on one line: escaped where it is not printable, cut where it is long."""
    safe = "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text[: limit + 1])
    return safe if len(safe) <= limit else safe[: limit - 1] + "…"


def kind(value: object) -> str:
    """A value as a user would name it: `'text'`, `5`, `true`, `a list`, `nothing`."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, (list, tuple)):
        return "a list"
    return f"'{shown(value)}'" if isinstance(value, str) else shown(str(value))


def did_you_mean(given: object, known: Iterable[str]) -> str | None:
    """A hint with the nearest known name, else all of them; None when there are none."""
    names = list(known)
    near = difflib.get_close_matches(str(given), names, n=1)
    if near:
        return f"did you mean '{shown(near[0])}'?"
    if len(names) == 1:
        return f"write {shown(names[0])}"
    return f"write one of: {shown(', '.join(names), limit=300)}" if names else None


def _matching(pattern: str, value: object, message: str, hint: str) -> re.Match[str]:
    found = re.fullmatch(pattern, value, re.ASCII) if isinstance(value, str) else None
    if not found:
        raise RefusedError(f"{message}, got {kind(value)}", hint)
    return found


def parse_name(value: object) -> str:
    """A model's or profile's name. It appears in paths and labels."""
    hint = "use lowercase letters, digits, '-', '.' and '_', at most 32, a letter or digit at both ends"
    text = _matching(NAME, value, "expected a plain name", hint).group()
    if ".." in text:
        raise RefusedError(f"expected a plain name, got {kind(text)}", "a name has no '..'")
    return text


def parse_agent_name(value: object) -> str:
    """An agent's name. It appears in container names, host names, paths and labels."""
    hint = "use lowercase letters, digits and '-', at most 32, a letter or digit at both ends"
    return _matching(AGENT_NAME, value, "expected a plain name", hint).group()


def parse_size(value: object) -> int:
    """`4GiB`, `512MiB` (powers of two) or `4GB` (powers of ten), to bytes; 0 is 0."""
    if value == 0 and type(value) is int:
        return 0
    found = _matching(SIZE, value, "expected a size", "write it with its unit, such as 4GiB, 512MiB or 4GB")
    text = found.group()
    unit = found.group(2)
    return round(float(text.removesuffix(unit)) * _UNITS[unit])


def parse_whole_gib(value: object) -> int:
    """A size in whole GiB, at least one, to bytes: VLLM_CPU_KVCACHE_SPACE takes nothing finer."""
    size = parse_size(value)
    if size < GIB or size % GIB:
        raise RefusedError(
            f"expected whole GiB, got {kind(value)}", "vLLM on the CPU takes whole GiB, such as 4GiB"
        )
    return size


def parse_context(value: object) -> int:
    """Tokens: a whole number, or `32k` for 32 x 1024."""
    tokens = value if type(value) is int else None
    hint = "write tokens, such as 32768, or 32k for 32 x 1024"
    if tokens is None:
        tokens = int(_matching(CONTEXT, value, "expected a number of tokens", hint).group()[:-1]) * 1024
    if not 1 <= tokens <= MAX_CONTEXT:
        raise RefusedError(f"expected 1 to {MAX_CONTEXT} tokens, got {kind(value)}", hint)
    return tokens


def parse_duration(value: object) -> float:
    """Seconds: a number, or `90s`, `15m`, `1h`."""
    hint = "write seconds, such as 900, or 90s, 15m, 1h"
    if type(value) in {int, float}:
        seconds = float(str(value))
    else:
        text = _matching(DURATION, value, "expected a duration", hint).group()
        seconds = float(text[:-1]) * _SECONDS[text[-1]]
    if not 0 < seconds <= MAX_DURATION_S:
        raise RefusedError(f"expected more than 0 and at most 24 hours, got {kind(value)}", hint)
    return seconds


def parse_keep_alive(value: object) -> float:
    """Seconds as Ollama's keep_alive says them: 0 is at once, -1 is always, else as a duration."""
    if type(value) in {int, float} and float(str(value)) in {0.0, -1.0}:
        return float(str(value))
    return parse_duration(value)


def parse_alias(value: object) -> str:
    """Another name for an agent, as clients send it: `gpt-4o`, `Org/Name`, `coder:14b`."""
    hint = "use letters, digits and '-._:/', at most 96, a letter or digit first"
    return _matching(ALIAS, value, "expected a model name", hint).group()


def parse_host(value: object) -> str:
    """An address to listen on: `127.0.0.1`, `::1`, `0.0.0.0`."""
    hint = "write an address of this machine: 127.0.0.1, or 0.0.0.0 for all of them"
    return _matching(HOST, value, "expected an address", hint).group()


def is_loopback(host: str) -> bool:
    """Whether an address to listen on is this machine's alone."""
    return host in {"localhost", "::1"} or host.startswith("127.")


def parse_origin(value: object) -> str:
    """A web page's origin, as browsers send it."""
    hint = "write it as browsers do, such as http://localhost:3000, without a path"
    return _matching(ORIGIN, value, "expected an origin", hint).group()


def parse_key_variable(value: object) -> str:
    """The name of the environment variable that holds a key."""
    hint = "write the variable's name, such as AGENT_MANAGER_API_KEY; the key itself never stands here"
    return _matching(VARIABLE, value, "expected the name of an environment variable", hint).group()


def parse_utilization(value: object) -> float | None:
    """`auto` (None), or a share of the card: above 0, at most 1."""
    if value == "auto":
        return None
    if type(value) not in {int, float} or not 0 < float(str(value)) <= 1:
        raise RefusedError(
            f"expected auto, or a share above 0 and at most 1, got {kind(value)}",
            "write auto unless you measured; 0.9 means 90 % of the card",
        )
    return float(str(value))


def parse_repo(value: object) -> str:
    """A Hub repository, `Organisation/Name`, by the Hub's own rules."""
    hint = "write it as on the Hub, such as Qwen/Qwen3-14B-AWQ; a local folder goes under `path`"
    text = _matching(REPO, value, "expected a Hub repository", hint).group()
    if "--" in text or ".." in text or text.endswith(".git"):
        raise RefusedError(
            f"expected a Hub repository, got {kind(text)}", "the Hub allows no '--', no '..' and no '.git'"
        )
    return text


def parse_commit(value: object) -> str:
    """A full commit. Branches and tags move, so they are refused."""
    hint = "write all 40 lowercase hexadecimal digits, or leave it out: the first pull finds and records it"
    if type(value) is int:
        hint = f"put it in quotes; {hint}"
    return _matching(COMMIT, value, "expected a full commit", hint).group()


def parse_path(value: object) -> str:
    """A folder as written; it is resolved against the catalog's own folder."""
    hint = "write a folder: absolute, under ~/, or relative to this file"
    text = _matching(r".+", value, "expected a folder", hint).group()
    if text.startswith("-") or (text.startswith("~") and not re.match(r"~(/|$)", text)):
        raise RefusedError(f"expected a folder, got {kind(text)}", hint)
    return text


def parse_parser_name(value: object) -> str:
    """The name of one of vLLM's tool or reasoning parsers."""
    hint = "use a name vLLM knows, such as hermes, qwen3 or qwen3_coder"
    return _matching(PARSER_NAME, value, "expected a parser's name", hint).group()


def parse_image(value: object) -> str:
    """A container image, pinned by a tag other than `latest`, or by its digest."""
    example = "such as vllm/vllm-openai:v0.32.0"
    found = _matching(IMAGE, value, "expected a container image", f"write name:tag, {example}")
    tag, digest = found.group("tag"), found.group("digest")
    if digest is None and tag is None:
        raise RefusedError(f"the image {kind(value)} is not pinned", f"add a version tag, {example}")
    if digest is None and tag.lower() == "latest":
        raise RefusedError(
            f"the image {kind(value)} is not pinned: 'latest' moves", f"name a version, {example}"
        )
    return found.group()


def parse_program(value: object) -> str:
    """One word of an engine's command."""
    hint = "write the words of the command as a list, such as [vllm, serve]"
    return _matching(r".+", value, "expected a word of a command", hint).group()


def parse_variable(value: object) -> str:
    """The name of an environment variable for an engine."""
    hint = "use letters, digits and '_'"
    text = _matching(VARIABLE, value, "expected the name of an environment variable", hint).group()
    if text.startswith("AGENT_MANAGER_"):
        raise RefusedError(f"{text} is not for engines", "agent-manager sets its own variables; remove it")
    return text


def parse_extra_arg(value: object) -> str:
    """One word for the engine's command line: a `--flag` that is not ours, or a value."""
    if not isinstance(value, str):
        raise RefusedError(f"expected text, got {kind(value)}", f"put it in quotes: '{kind(value)}'")
    if not value.startswith("-") or re.fullmatch(r"-[0-9.]+", value, re.ASCII):
        return str(value)
    if not re.fullmatch(r"--[A-Za-z][\w.-]*(=.*)?", value, re.ASCII):
        hint = "write the flag's long form, and its value as the next word, such as [--dtype, bfloat16]"
        raise RefusedError(f"{kind(value)} is not a flag", hint)
    # vLLM reads --max_model_len, --max-model-len=1, --no-flag and any unambiguous beginning of a flag.
    flag = re.split(r"[=.]", value.replace("_", "-"), maxsplit=1)[0].replace("--no-", "--", 1)
    for ours, instead in RENDERED_FLAGS.items():
        if ours.startswith(flag):
            raise RefusedError(f"{kind(value)} cannot be set here", instead)
    return str(value)


def begin_with_flag(words: list[str]) -> list[str]:
    """Extra arguments, which begin with a flag: a value in front would join our own arguments."""
    if words and not words[0].startswith("--"):
        raise RefusedError(
            f"{kind(words[0])} follows no flag", "begin with a flag, such as [--dtype, bfloat16]"
        )
    return words


def parse_faults(value: object) -> str:
    """Faults of the simulated engine, separated by commas, such as `crash-after:3,ignore-sigterm`."""
    parts = value.replace(" ", "").split(",") if isinstance(value, str) else [""]
    for part in parts:
        if not re.fullmatch(FAULT, part, re.ASCII):
            raise RefusedError(f"no such fault: {kind(part or value)}", f"faults are: {FAULT_NAMES}")
    return ",".join(parts)
