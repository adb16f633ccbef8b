"""What a repository on the Hub holds, known before it is downloaded: its config and the headers of its weights.

Ranges of some hundred kilobytes are read of each file of weights, and none of the weights.
"""

from __future__ import annotations

import json
import re
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Final

from msgspec import Struct

from agent_manager.checkpoints.disk import CONFIG, INDEX, WEIGHTS, is_wanted
from agent_manager.checkpoints.facts import Facts, Origin, facts_from
from agent_manager.checkpoints.headers import HEADER_LENGTH_BYTES, header_length, indexed_files, parse_header
from agent_manager.checkpoints.hub import listing, read_range
from agent_manager.checkpoints.known import KNOWN
from agent_manager.errors import CheckpointUnusable

if TYPE_CHECKING:
    from collections.abc import Iterable

    from agent_manager.checkpoints.headers import Tensor
    from agent_manager.checkpoints.hub import Listing, RemoteFile

AT_ONCE: Final = 8
"""How many files are asked for at the same time."""
_FIRST_BYTES: Final = 128 * 1024
"""Most headers are shorter: one request a file."""
_GB: Final = 10**9
_GGUF_LABEL: Final = re.compile(r"[-.]((?:I?Q\d\w*)|BF16|F16|F32)(?:-\d{5}-of-\d{5})?\.gguf$", re.IGNORECASE)
_GGUF_ASKED_FOR: Final = ("Q4_K_M", "Q5_K_M")


class Inspected(Struct, frozen=True, kw_only=True):
    """A repository at a commit. `files` are those an engine needs, `download_bytes` what they add up to."""

    repo: str
    commit: str
    facts: Facts
    download_bytes: int
    files: tuple[RemoteFile, ...]


def inspect(repo: str, *, revision: str | None = None, endpoint: str | None = None) -> Inspected:
    """Read a repository's facts from the Hub, at a commit, branch or tag (None: the main branch).

    Blocks for some seconds. `endpoint` None is $HF_ENDPOINT, or the public Hub. Raises DownloadFailed when the Hub
    does not give it, CheckpointUnusable when no engine here can load it (GGUF, or no weights at all).
    """
    listed = listing(repo, revision=revision, endpoint=endpoint)
    wanted = {file.name: file for file in listed.files if is_wanted(file.name)}
    if CONFIG not in wanted or not any(name.endswith(WEIGHTS) for name in wanted):
        raise _unloadable(listed)
    source = _Source(repo=repo, commit=listed.commit, endpoint=endpoint)
    weights = source.weights(wanted)
    with ThreadPoolExecutor(max_workers=AT_ONCE) as pool:
        config = pool.submit(source.json, wanted[CONFIG])
        headers = list(pool.map(source.header, weights))
    facts = facts_from(
        config.result(),
        [tensor for header in headers for tensor in header],
        disk_bytes=sum(file.size_bytes for file in weights),
        origin=Origin.HUB,
        where=f"{repo}/{CONFIG}",
    )
    return Inspected(
        repo=repo,
        commit=listed.commit,
        facts=facts,
        download_bytes=sum(file.size_bytes for file in wanted.values()),
        files=tuple(wanted.values()),
    )


class _Source(Struct, frozen=True, kw_only=True):
    """One repository at one commit, to read from."""

    repo: str
    commit: str
    endpoint: str | None

    def read(self, file: RemoteFile, start: int, length: int) -> bytes:
        return read_range(
            self.repo, self.commit, file.name, start=start, length=length, endpoint=self.endpoint
        )

    def weights(self, wanted: dict[str, RemoteFile]) -> list[RemoteFile]:
        """The files of weights that the index names, else all there are."""
        if INDEX not in wanted:
            return [file for name, file in wanted.items() if name.endswith(WEIGHTS)]
        where = f"{self.repo}/{INDEX}"
        names = indexed_files(self.json(wanted[INDEX]), where=where)
        absent = sorted(names - wanted.keys())
        if absent:
            raise CheckpointUnusable(
                f"{where}: {absent[0]} is not in the repository",
                hint="choose another repository, or another revision of it",
                where=where,
            )
        return [wanted[name] for name in sorted(names)]

    def json(self, file: RemoteFile) -> dict[str, object]:
        where = f"{self.repo}/{file.name}"
        try:
            document = json.loads(self.read(file, 0, max(1, file.size_bytes)))
        except ValueError:
            document = None
        if not isinstance(document, dict):
            raise CheckpointUnusable(
                f"{where}: it is not a JSON object",
                hint="choose another repository, or another revision of it",
                where=where,
            )
        return document

    def header(self, file: RemoteFile) -> tuple[Tensor, ...]:
        where = f"{self.repo}/{file.name}"
        first = self.read(file, 0, _FIRST_BYTES)
        length = header_length(first[:HEADER_LENGTH_BYTES], file_bytes=file.size_bytes, where=where)
        end = HEADER_LENGTH_BYTES + length
        if len(first) < end:
            first += self.read(file, len(first), end - len(first))
        return parse_header(first[HEADER_LENGTH_BYTES:end], file_bytes=file.size_bytes, where=where)


def _unloadable(listed: Listing) -> CheckpointUnusable:
    """Why no engine here loads what the repository holds."""
    repo = listed.repo
    sizes = _gguf_sizes(listed.files)
    if not sizes:
        return CheckpointUnusable(
            f"{repo} has no {CONFIG} with safetensors weights: no engine here can load it",
            hint="choose a repository with safetensors weights (AWQ, GPTQ, compressed-tensors or FP8)",
            where=repo,
        )
    smallest, largest = min(sizes, key=sizes.__getitem__), max(sizes, key=sizes.__getitem__)
    told = dict.fromkeys((smallest, *(label for label in _GGUF_ASKED_FOR if label in sizes), largest))
    figures = ", ".join(f"{label} {sizes[label] / _GB:.2f} GB" for label in told)
    return CheckpointUnusable(
        f"{repo} holds GGUF files only ({figures}), which vLLM does not load",
        hint=f"choose safetensors weights (AWQ, GPTQ, compressed-tensors or FP8){_instead(repo)}",
        where=repo,
    )


def _gguf_sizes(files: Iterable[RemoteFile]) -> dict[str, int]:
    """Bytes by quantization (`Q4_K_M`), the parts of a divided file together."""
    sizes: dict[str, int] = {}
    for file in files:
        if file.name.lower().endswith(".gguf"):
            found = _GGUF_LABEL.search(file.name)
            label = found.group(1).upper() if found else file.name
            sizes[label] = sizes.get(label, 0) + file.size_bytes
    return sizes


def _instead(repo: str) -> str:
    """The well-known checkpoint of the same model: `; Qwen/Qwen2.5-32B-Instruct-AWQ is 19.33 GB`."""
    model = re.sub(r"-gguf$", "", repo.rpartition("/")[2], flags=re.IGNORECASE).lower()
    for name, facts in KNOWN.items():
        if name.rpartition("/")[2].lower().startswith(f"{model}-"):
            return f"; {name} is {facts.disk_bytes / _GB:.2f} GB"
    return ""
