from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from agent_manager.catalog.load import load_catalog
from agent_manager.errors import CatalogInvalid
from tests.catalog.conftest import SMALL, Load, Problems

if TYPE_CHECKING:
    from pathlib import Path

# Each line that is wrong ends in a comment: the path of its problem, and a part of its message.
EVERYTHING_WRONG = """\
version: 2                                     # version | expected 1, got 2
engin: vllm                                    # engin | unknown key
engine: vlm                                    # engine | expected one of vllm, vllm-cpu, simulated, got 'vlm'
engines:
  vllm:
    image: vllm/vllm-openai:latest             # engines.vllm.image | 'latest' moves
    command: vllm serve                        # engines.vllm.command | expected a list
    stall_timeout: soon                        # engines.vllm.stall_timeout | expected a duration
    kv_cache: 4GiB                             # engines.vllm.kv_cache | unknown key
    env:
      FOO: 1                                   # engines.vllm.env.FOO | expected text, got 1
      AGENT_MANAGER_INSTANCE: "x"              # engines.vllm.env.AGENT_MANAGER_INSTANCE | not for engines
  vllm-cpu:
    image: vllm/vllm-openai-cpu                # engines.vllm-cpu.image | not pinned
    kv_cache: 512MiB                           # engines.vllm-cpu.kv_cache | expected whole GiB
  simulated:
    load_seconds: -1                           # engines.simulated.load_seconds | expected at least 0, got -1
    faults:
      dev: explode                             # engines.simulated.faults.dev | no such fault: 'explode'
      nobody: oom                              # engines.simulated.faults.nobody | no agent named 'nobody'
  tgi: {}                                      # engines.tgi | unknown key
models:
  a:
    repo: Qwen/X
    revision: main                             # models.a.revision | expected a full commit
  b:                                           # models.b | says neither repo nor path
    tool_parser: hermes
  c: {repo: X/Y, path: /srv/x}                 # models.c | says both repo and path
  D: {repo: X/Y}                               # models.D | expected a plain name
  e:
    path: /srv/e
    revision: 31c69efc29464b6bb0aee1398b5a7b50a99340c3  # models.e.revision | a folder has no revision
  f: {repo: X/Y/Z}                             # models.f.repo | expected a Hub repository
agents:
  dev:
    model: aa                                  # agents.dev.model | no model named 'aa'
    port: 80                                   # agents.dev.port | expected at least 1024, got 80
    context: 32 k                              # agents.dev.context | expected a number of tokens
    sequences: 0                               # agents.dev.sequences | expected at least 1
    kv_cache_dtype: int3                       # agents.dev.kv_cache_dtype | expected one of auto
    gpu_memory_utilization: 1.5                # agents.dev.gpu_memory_utilization | at most 1, got 1.5
    cpu_offload: 8                             # agents.dev.cpu_offload | expected a size, got 8
    eager: yes                                 # agents.dev.eager | expected true or false, got 'yes'
    sampling:
      temperature: hot                         # agents.dev.sampling.temperature | expected a number, got 'hot'
      max_tokens: 5                            # agents.dev.sampling.max_tokens | unknown key
    extra_args:
      - --enable-log-requests
      - --port=3                               # agents.dev.extra_args[1] | cannot be set here
  dev2: {model: a, port: 8001, context: 1k}
  dev3: {model: a, port: 8001, context: 1k}    # agents.dev3.port | port 8001 is taken by agent dev2
  dev4: {model: a, port: 8101, context: 1k}    # agents.dev4.port | taken by the engine of agent dev2
  dev5: {model: a, port: 7901, context: 1k}    # agents.dev5.port | its engine's port 8001 is taken by agent dev2
  dev6: {model: a, port: "8007", context: 1k}  # agents.dev6.port | expected a whole number, got '8007'
  dev7: {model: a, port: 65436, context: 1k}   # agents.dev7.port | expected at most 65435
  dev8: {model: a, context: 1k}                # agents.dev8.port | missing
  dev_9: {model: a, port: 8020, context: 1k}   # agents.dev_9 | expected a plain name
  dev2: {model: a, port: 8001, context: 1k}    # agents.dev2 | already set on line 50
profiles:
  p:
    engine: cpu                                # profiles.p.engine | expected one of
    models: {}                                 # profiles.p.models | unknown key
    agents:
      deev: {context: 1k}                      # profiles.p.agents.deev | no agent named 'deev'
      dev:
        port: 9000                             # profiles.p.agents.dev.port | cannot change 'port'
        model: zz                              # profiles.p.agents.dev.model | no model named 'zz'
        context: ${env:NOT_SET}                # profiles.p.agents.dev.context | NOT_SET is not set
gateway:
  host: 0.0.0.0                                # gateway.host | open to others, and no key is asked for
  port: 81                                     # gateway.port | expected at least 1024, got 81
  api_key: secret                              # gateway.api_key | unknown key
  keep_alive: -5                               # gateway.keep_alive | more than 0
  origins: [localhost]                         # gateway.origins[0] | expected an origin
  default: deev                                # gateway.default | no agent named 'deev'
  preload: [dev]                               # gateway.preload | expected a plain name
"""


def test_every_problem_is_reported_at_once_with_its_line(problems: Problems) -> None:
    expected: list[tuple[int, str, str]] = [
        (number, line.split("  # ")[1].split("|")[0].strip(), line.split("|")[1].strip())
        for number, line in enumerate(EVERYTHING_WRONG.splitlines(), start=1)
        if "  # " in line
    ]
    found = problems(EVERYTHING_WRONG)
    assert [(problem.line, problem.path) for problem in found] == [(line, path) for line, path, _ in expected]
    for problem, (_, _, message) in zip(found, expected, strict=True):
        assert message in problem.message
        assert problem.hint, problem
        assert problem.file.endswith("models.yaml")


def test_the_gateways_port_is_nobody_elses(problems: Problems) -> None:
    (found,) = problems(SMALL + "gateway: {port: 8101}\n")
    assert (found.path, found.message) == (
        "agents.dev.port",
        "its engine's port 8101 is taken by the gateway",
    )


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("", 1, "the file is empty"),
        ("# nothing\n", 1, "the file is empty"),
        ("- a\n- b\n", 1, "expected 'key: value' lines"),
        ("just words\n", 1, "expected 'key: value' lines"),
        (SMALL + "  po: {model: tiny\n", 6, "not valid YAML"),
        (SMALL + "\tpo: 1\n", 6, "not valid YAML"),
        (SMALL + "---\nversion: 1\n", 6, "a second document"),
        (SMALL + "? [a]\n: b\n", 6, "a key must be a plain word"),
        (SMALL + "x: \x07\n", 6, "U+0007"),
        (SMALL + "x: a\u2028b\n", 6, "U+2028"),
        (SMALL + "x: " + "[" * 5000, 6, "nested more than"),
    ],
)
def test_what_is_no_catalog_at_all(problems: Problems, text: str, line: int, message: str) -> None:
    found = problems(text)
    assert [problem.line for problem in found] == [line]
    assert message in found[0].message
    assert found[0].hint


@pytest.mark.parametrize(
    ("addition", "message"),
    [
        ("engine: &e vllm\n", "anchors and aliases"),
        ("engine: !!str vllm\n", "tags"),
        ("engine: !!python/object/apply:os.system [id]\n", "tags"),
        ("engine: |\n  vllm\n", "line break"),
        ('engine: "vllm\\n"\n', "line break"),
        ('engine: "vl\\u200blm"\n', "invisible character"),
        ("engine: " + "v" * 5000 + "\n", "longer than 4096"),
        ("engine: ${env:NO\n", "without its '}'"),
        ("engine: ${env:A B}\n", "no name of a variable"),
        ("engine: ${env:EVIL}\n", "line break"),
    ],
)
def test_yaml_that_a_catalog_has_no_use_for(problems: Problems, addition: str, message: str) -> None:
    found = problems(SMALL + addition, environ={"EVIL": "vllm\n--help"})
    assert [(problem.line, problem.path) for problem in found] == [(6, "engine")]
    assert message in found[0].message


@pytest.mark.parametrize(
    ("system", "message"),
    [
        ('"vl\\u200blm"', "holds an invisible character"),
        ("v" * 70_000, "longer than 65536"),
        ("12", "quotes"),
    ],
)
def test_even_a_system_prompt_is_text_of_a_sensible_length(
    problems: Problems, system: str, message: str
) -> None:
    (problem,) = problems(SMALL.replace("4k}", f"4k, system: {system}}}"))
    assert (problem.line, problem.path) == (5, "agents.dev.system")
    assert message in f"{problem.message} {problem.hint}"


def test_a_tab_is_named(problems: Problems) -> None:
    assert problems(SMALL + "\tpo: 1\n")[0].hint == "indent with spaces"


def test_aliases_cannot_multiply(problems: Problems) -> None:
    pairs = zip("abcdefgh", "bcdefghi", strict=True)
    bomb = "a: &a [x, x, x]\n" + "".join(f"{later}: [*{name}, *{name}]\n" for name, later in pairs)
    lines = [problem.line for problem in problems(bomb) if "aliases" in problem.message]
    assert lines == [1, *(line for line in range(2, 10) for _ in range(2))]


def test_ports_from_the_environment_are_compared_too(problems: Problems) -> None:
    found = problems(
        SMALL + '  po: {model: tiny, port: "${env:PORT}", context: 1k}\n', environ={"PORT": "8001"}
    )
    assert [(problem.line, problem.path) for problem in found] == [(6, "agents.po.port")]
    assert "taken by agent dev" in found[0].message


def test_not_utf8_and_too_large(tmp_path: Path) -> None:
    path = tmp_path / "models.yaml"
    path.write_bytes(b"version: 1\nengine: \xff\n")
    with pytest.raises(CatalogInvalid) as refused:
        load_catalog(path, environ={})
    assert (refused.value.problems[0].line, refused.value.problems[0].message) == (2, "not UTF-8 text")
    path.write_bytes(b"#" * 1_000_000)
    with pytest.raises(CatalogInvalid, match="1 problem") as refused:
        load_catalog(path, environ={})
    assert "larger than 128 KiB" in refused.value.problems[0].message


def test_hints_name_the_nearest_key_model_and_value(problems: Problems) -> None:
    text = SMALL.replace("context", "contxt").replace("model: tiny", "model: tny") + "runtime: dokcer\n"
    hints = {problem.path: problem.hint for problem in problems(text)}
    assert hints["agents.dev.contxt"] == "did you mean 'context'?"
    assert hints["agents.dev.model"] == "did you mean 'tiny'?"
    assert hints["runtime"] == "did you mean 'docker'?"


NAMES = [
    *(
        "--help",
        "-v",
        "../up",
        "a/b",
        "a b",
        "a;id",
        "$(id)",
        "a'b",
        'a"b',
        "",
        ".",
        "..",
        "a..b",
        "UPPER",
        "ends-",
    ),
    *("new\nline", "nul\0", "d\u0435v", "x" * 33, "a:b", "a,b", "a=b", "${x}", "%s", "a\u2028b"),
]
DEV = "\nagents: {dev: {model: tiny, port: 8001, context: 4k}}"
PLACES = {
    "agent": "agents: {NAME: {model: tiny, port: 8001, context: 4k}}\nmodels: {tiny: {repo: A/B}}",
    "model": "models: {NAME: {repo: A/B}, tiny: {repo: A/B}}" + DEV,
    "profile": "models: {tiny: {repo: A/B}}\nprofiles: {NAME: {}}" + DEV,
    "repo": "models: {tiny: {repo: NAME}}" + DEV,
    "revision": "models: {tiny: {repo: A/B, revision: NAME}}" + DEV,
    "parser": "models: {tiny: {repo: A/B, tool_parser: NAME}}" + DEV,
    "image": "engines: {vllm: {image: NAME}}\nmodels: {tiny: {repo: A/B}}" + DEV,
    "variable": "engines: {vllm: {env: {NAME: x}}}\nmodels: {tiny: {repo: A/B}}" + DEV,
}
PLAIN_THERE = {
    *(("UPPER", "variable"), ("a/b", "repo"), ("a:b", "image")),
    *((name, place) for name in ("ends-", "a..b", "x" * 33) for place in ("parser",)),
    ("x" * 33, "variable"),
}


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_injected_through_a_name(load: Load, name: str) -> None:
    for place, text in PLACES.items():
        if (name, place) in PLAIN_THERE:
            continue
        with pytest.raises(CatalogInvalid) as refused:
            load("version: 1\n" + text.replace("NAME", json.dumps(name)))
        for problem in refused.value.problems:
            assert f"{problem}{problem.hint}".isprintable()


@pytest.mark.parametrize(
    "words",
    [
        ["--port", "1"], ["--port=1"], ["--max_model_len", "1"], ["--served-model-nam", "x"], ["--api-key", "x"],
        ["--no-enforce-eager"], ["--config", "/etc/x"], ["--host=0.0.0.0"], ["--gpu-mem", "1"], ["--hf-token", "x"],
        ["--override-generation-config.temperature", "1"],
        ["value"], ["-tp", "2"], ["-O3"], ["--"], ["--a b"], ["--dtype", "a\nb"], ["--dtype", 5], [""],
    ],
)  # fmt: skip
def test_extra_args_cannot_take_over_ours(load: Load, words: list[object]) -> None:
    with pytest.raises(CatalogInvalid):
        load(SMALL.replace("context: 4k", f"context: 4k, extra_args: {json.dumps(words)}"))


def test_extra_args_that_are_ours_to_pass_on(load: Load) -> None:
    words = [
        "--max-num-batched-tokens",
        "2048",
        "--cudagraph-capture-sizes",
        "1",
        "2",
        "--seed",
        "-1",
        "--model-impl=auto",
    ]
    words += ["--speculative-config", '{"method": "ngram"}']
    assert load(SMALL.replace("context: 4k", f"context: 4k, extra_args: {json.dumps(words)}")).agent(
        "dev"
    ).extra_args == tuple(words)


@pytest.mark.parametrize("path", ["-x", "~root/x", "a\nb", "a\0b", ""])
def test_folders_that_are_refused(load: Load, path: str) -> None:
    with pytest.raises(CatalogInvalid):
        load(SMALL.replace("repo: Qwen/Qwen2.5-0.5B-Instruct", f"path: {json.dumps(path)}"))
