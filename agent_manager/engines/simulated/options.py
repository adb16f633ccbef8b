"""The part of `vllm serve`'s command line that agent-manager renders; anything else is refused."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from msgspec import Struct

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

PROGRAM = "agent-manager-simulated"
TOOL_PARSERS = frozenset(
    """
    apertus cohere_command3 cohere_command4 deepseek_v3 deepseek_v31 deepseek_v32 deepseek_v4
    deepseek_v41 dots ernie45 functiongemma gemma4 gigachat3 glm45 glm47 granite granite-20b-fc granite4
    hermes hf hunyuan_a13b hy_v3 hy_v4 inkling internlm jamba k2_horizon kimi_k2 kimi_k3 lfm2 ling3
    llama3_json llama4_json llama4_pythonic longcat mimo minicpm5 minimax_m2 minimax_m3 mistral
    muse_glimmer olmo3 openai phi4_mini_json plamo3 poolside_v1 pythonic qwen3_coder qwen3_json
    qwen3_xml seed_oss step3 step3p5 xlam
    """.split()  # noqa: SIM905 - one name a line would fill a screen
)
"""Those of vLLM 0.32."""
REASONING_PARSERS = frozenset(
    """
    cohere_command3 cohere_command4 deepseek_r1 deepseek_v3 deepseek_v4 deepseek_v41 ernie45 gemma4
    glm45 glm47 granite granite_thinking_parser hf holo2 hunyuan_a13b hy_v3 hy_v4 inkling k2_horizon
    kimi_k2 kimi_k3 ling3 mimo minicpmv minimax_m2 minimax_m2_append_think minimax_m3 mistral
    muse_glimmer nemotron_v3 olmo3 openai_gptoss plamo3 poolside_v1 qwen3 seed_oss step3 step3p5
    """.split()  # noqa: SIM905 - one name a line would fill a screen
)
"""Those of vLLM 0.32."""
KV_CACHE_DTYPES = ("auto", "float16", "bfloat16", "fp8", "fp8_e4m3", "fp8_e5m2")


class Options(Struct, frozen=True, kw_only=True):
    """A parsed command line. `names` are those it serves under: `--served-model-name`, or the model itself.

    Some options change nothing here; they are kept to be shown in the log, as vLLM does.
    """

    model: str
    names: tuple[str, ...]
    host: str
    port: int
    utilization: float
    max_model_len: int
    max_num_seqs: int
    eager: bool
    auto_tool_choice: bool
    reasoning_parser: str | None
    thinking: bool
    sleep_mode: bool
    shutdown_timeout_s: int
    quiet_paths: frozenset[str]
    given: Mapping[str, Any]


def parse(argv: Sequence[str]) -> Options:
    """Read what follows the program's name: `serve MODEL --flags`. Exits 2 with usage, as vLLM does."""
    parser = _parser()
    values = parser.parse_args(argv)
    if values.enable_auto_tool_choice and values.tool_call_parser is None:
        parser.error("--enable-auto-tool-choice requires --tool-call-parser")
    thinking = (values.default_chat_template_kwargs or {}).get("enable_thinking", True)
    return Options(
        model=values.model,
        names=tuple(values.served_model_name or (values.model,)),
        host=values.host,
        port=values.port,
        utilization=values.gpu_memory_utilization,
        max_model_len=values.max_model_len,
        max_num_seqs=values.max_num_seqs,
        eager=values.enforce_eager,
        auto_tool_choice=values.enable_auto_tool_choice,
        reasoning_parser=values.reasoning_parser,
        thinking=bool(thinking),
        sleep_mode=values.enable_sleep_mode,
        shutdown_timeout_s=values.shutdown_timeout,
        quiet_paths=frozenset(filter(None, values.disable_access_log_for_endpoints.split(","))),
        given={
            name: value
            for name, value in vars(values).items()
            if name not in {"verb", "model"} and value != parser.get_default(name)
        },
    )


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        # One line of usage instead of a screenful: the error is what matters.
        self.exit(2, f"usage: {self.prog} serve MODEL [options]\n{self.prog}: error: {message}\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog=PROGRAM, allow_abbrev=False, description="vLLM's server, simulated: no model runs")
    parser.add_argument("verb", choices=["serve"])
    parser.add_argument("model")
    parser.add_argument("--served-model-name", nargs="+")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=_whole, default=8000)
    parser.add_argument("--revision")
    parser.add_argument("--load-format", default="auto")
    parser.add_argument("--generation-config", default="auto")
    parser.add_argument("--override-generation-config", type=_json_object)
    parser.add_argument("--shutdown-timeout", type=_whole, default=0)
    parser.add_argument("--disable-access-log-for-endpoints", default="")
    parser.add_argument("--enable-sleep-mode", action="store_true")
    _add_memory(parser)
    _add_chat(parser)
    return parser


def _add_memory(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--gpu-memory-utilization", type=_share, default=0.92)
    parser.add_argument("--max-model-len", type=_positive, default=32768)
    parser.add_argument("--max-num-seqs", type=_positive, default=256)
    parser.add_argument("--max-num-batched-tokens", type=_positive, default=2048)
    parser.add_argument("--kv-cache-dtype", choices=KV_CACHE_DTYPES, default="auto")
    parser.add_argument("--cpu-offload-gb", type=float, default=0.0)
    parser.add_argument("--enforce-eager", action="store_true")
    parser.add_argument("--language-model-only", action="store_true")
    parser.add_argument("--tensor-parallel-size", type=_positive, default=1)


def _add_chat(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--enable-auto-tool-choice", action="store_true")
    parser.add_argument("--tool-call-parser", choices=sorted(TOOL_PARSERS), metavar="NAME")
    parser.add_argument("--reasoning-parser", choices=sorted(REASONING_PARSERS), metavar="NAME")
    parser.add_argument("--default-chat-template-kwargs", type=_json_object)


def _whole(text: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number")
    return int(text)


def _positive(text: str) -> int:
    number = _whole(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"'{text}' must be at least 1")
    return number


def _share(text: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = 0.0
    if not 0 < share <= 1:
        raise argparse.ArgumentTypeError(f"'{text}' must be above 0 and at most 1")
    return share


def _json_object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise argparse.ArgumentTypeError(f"invalid JSON: {error}") from None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError("must be a JSON object")
    return value


def is_missing_folder(model: str) -> bool:
    """Whether `model` is a path, and no folder with a config.json is there."""
    return model.startswith(("/", "./", "../", "~")) and not Path(model, "config.json").is_file()
