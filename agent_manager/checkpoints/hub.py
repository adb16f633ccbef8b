"""The Hub, by its own library: what there is, who we are, what a refusal means. The only file that imports it.

The bytes of a checkpoint come by `pull.py`: what the library fetches, another process cannot continue.
"""

from __future__ import annotations

import re
import time
from contextlib import contextmanager, suppress
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final, TypeVar

from msgspec import Struct
from msgspec.structs import replace

from agent_manager.checkpoints.fetching.patience import GO_ON, PASSING, Patience, asked_s
from agent_manager.errors import DownloadFailed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from httpx2 import Response

    from agent_manager.checkpoints.fetching.progress import RemarkListener
    from agent_manager.checkpoints.fetching.transfer import Origin

T = TypeVar("T")

_ASK_TIMEOUT_S: Final = 30.0
_ASK_TRIES: Final = 3
"""Someone waits for the first answer: a Hub that is down is told sooner than in the middle of a download."""
_LOG_IN: Final = "log in with 'hf auth login', or set HF_TOKEN"
_COMMIT: Final = re.compile(r"[0-9a-f]{40}")
_SHA256: Final = re.compile(r"[0-9a-f]{64}")
_PLAIN_BYTES: Final = 1 << 20
"""A larger file is seldom in git itself; the Hub allows 10 MiB."""
_PATIENCE: Final = Patience()


class RemoteFile(Struct, frozen=True, kw_only=True):
    """A file of a repository at one commit.

    `sha256` is set for a file in large file storage, and is then its `blob` too: the name it has in the cache's
    `blobs/`. Any other file's `blob` is git's: the sha1 of `blob <size>`, a zero byte and its content. `git_blob`
    and `xet_hash` are what git and Xet know a file in large file storage by.
    """

    name: str
    size_bytes: int
    sha256: str | None
    blob: str
    git_blob: str | None = None
    xet_hash: str | None = None


class Listing(Struct, frozen=True, kw_only=True):
    """All files of a repository at one commit, in the order the Hub lists them."""

    repo: str
    commit: str
    files: tuple[RemoteFile, ...]


def listing(
    repo: str,
    *,
    revision: str | None,
    endpoint: str | None = None,
    patience: Patience = _PATIENCE,
    on_remark: RemarkListener = lambda _: None,
) -> Listing:
    """All files of a repository at a commit, branch or tag (None: the main branch).

    Asks the Hub; blocks for up to some seconds, longer when the Hub asks to wait. Raises DownloadFailed.
    """
    pinned = revision is not None and _COMMIT.fullmatch(revision)
    with _as_download_failed(repo, revision):
        commit = (
            revision if pinned else _patiently(lambda: _ask(repo, revision, endpoint), patience, on_remark)
        )
        if commit is None:
            raise _no_commit(repo)
        entries = _patiently(lambda: _tree(repo, commit, endpoint), patience, on_remark)
    files = (_remote_file(entry) for entry in entries if entry["type"] == "file")
    return Listing(
        repo=repo,
        commit=commit,
        files=tuple(_named_as_served(file, repo, commit, endpoint) for file in files),
    )


def _named_as_served(file: RemoteFile, repo: str, commit: str, endpoint: str | None) -> RemoteFile:
    """A large file that is listed as a small one, as mirrors do, with the name that it is given out under."""
    if file.sha256 is not None or file.size_bytes <= _PLAIN_BYTES:
        return file
    from huggingface_hub import get_hf_file_metadata, hf_hub_url  # noqa: PLC0415 - only to fetch
    from huggingface_hub.errors import HfHubHTTPError  # noqa: PLC0415 - likewise

    url = hf_hub_url(repo, file.name, revision=commit, endpoint=endpoint)
    with suppress(HfHubHTTPError):  # one that may be listed and not fetched: whoever fetches it will be told
        etag = get_hf_file_metadata(url, endpoint=endpoint).etag or ""
        if _SHA256.fullmatch(etag):
            return replace(file, sha256=etag, blob=etag, git_blob=file.blob)
    return file


def _remote_file(entry: Mapping[str, Any]) -> RemoteFile:
    """The Hub's entry (as `RepoFile` of the library reads it) as ours: large files go by their sha256."""
    lfs = entry.get("lfs")
    if lfs is None:
        return RemoteFile(name=entry["path"], size_bytes=entry["size"], sha256=None, blob=entry["oid"])
    return RemoteFile(
        name=entry["path"],
        size_bytes=lfs["size"],
        sha256=lfs["oid"],
        blob=lfs["oid"],
        git_blob=entry["oid"],
        xet_hash=entry.get("xetHash"),
    )


def read_range(
    repo: str, commit: str, name: str, *, start: int, length: int, endpoint: str | None = None
) -> bytes:
    """`length` bytes of one file from offset `start` on; fewer only where the file ends.

    The token that the library would send goes to the Hub alone, not to the host it sends us on to. A server that
    ignores ranges is read up to the last byte wanted, and no further. Blocks. Raises DownloadFailed.
    """
    from huggingface_hub import get_session, hf_hub_url, hf_raise_for_status  # noqa: PLC0415 - only to fetch
    from huggingface_hub.utils._headers import build_hf_headers  # noqa: PLC0415 - likewise

    url = hf_hub_url(repo, name, revision=commit, endpoint=endpoint)
    # Compressed on the way, offsets would count other bytes than the file's.
    headers = {
        **build_hf_headers(),
        "Accept-Encoding": "identity",
        "Range": f"bytes={start}-{start + length - 1}",
    }
    with (
        _as_download_failed(repo, commit),
        get_session().stream("GET", url, headers=headers, timeout=_ASK_TIMEOUT_S) as response,
    ):
        if response.status_code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            return b""
        hf_raise_for_status(response)
        skipped = 0 if response.status_code == HTTPStatus.PARTIAL_CONTENT else start
        return _first_bytes(response, skipped + length)[skipped:]


def _first_bytes(response: Response, most_bytes: int) -> bytes:
    content = bytearray()
    for chunk in response.iter_raw():
        content += chunk
        if len(content) >= most_bytes:
            break
    return bytes(content[:most_bytes])


def resolve_revision(
    repo: str,
    *,
    endpoint: str | None = None,
    patience: Patience = _PATIENCE,
    on_remark: RemarkListener = lambda _: None,
) -> str:
    """The commit that the repository's main branch has now. Asks the Hub; blocks for up to some seconds.

    `endpoint` None is $HF_ENDPOINT, or the public Hub. Raises DownloadFailed.
    """
    with _as_download_failed(repo, None):
        commit = _patiently(lambda: _ask(repo, None, endpoint), patience, on_remark)
    if commit is None:
        raise _no_commit(repo)
    return commit


def origin(repo: str, commit: str, endpoint: str | None) -> Origin:
    """The Hub, for requests that the library does not make itself. Sends nothing."""
    from httpx2 import create_ssl_context  # noqa: PLC0415 - huggingface_hub's own HTTP library, loaded with it
    from huggingface_hub import hf_hub_url  # noqa: PLC0415 - takes half a second; needed only to fetch
    from huggingface_hub.utils._headers import build_hf_headers  # noqa: PLC0415 - likewise

    from agent_manager.checkpoints.fetching.transfer import Origin  # noqa: PLC0415 - aiohttp; likewise

    return Origin(
        url_of=lambda name: hf_hub_url(repo, name, revision=commit, endpoint=endpoint),
        headers=build_hf_headers(),
        tls=create_ssl_context,
        refusal=lambda status, headers, url: _refusal(repo, commit, status, headers, url),
    )


def _refusal(repo: str, commit: str, status: int, headers: Mapping[str, str], url: str) -> DownloadFailed:
    """What an answer of the Hub means, in our words."""
    from httpx2 import Request, Response  # noqa: PLC0415 - huggingface_hub's own HTTP library, loaded with it
    from huggingface_hub import hf_raise_for_status  # noqa: PLC0415 - takes half a second; needed only to fetch
    from huggingface_hub.errors import HfHubHTTPError  # noqa: PLC0415 - likewise

    response = Response(status, headers=dict(headers), request=Request("GET", url))
    try:
        hf_raise_for_status(response)
    except HfHubHTTPError as error:
        return _explained(error, repo, commit)
    return DownloadFailed(f"the Hub answered {status} for {repo}", hint=GO_ON, where=url)


def _ask(repo: str, revision: str | None, endpoint: str | None) -> str | None:
    """The commit that `revision`, or the main branch, is."""
    from huggingface_hub import HfApi  # noqa: PLC0415 - takes half a second; needed only to fetch

    return HfApi(endpoint=endpoint).model_info(repo, revision=revision, timeout=_ASK_TIMEOUT_S).sha


def _tree(repo: str, commit: str, endpoint: str | None) -> list[dict[str, Any]]:
    """The files of a commit as the Hub lists them, page after page.

    `HfApi.list_repo_tree` would wait for a busy Hub without a word, for as long as that asks.
    """
    from huggingface_hub import constants, get_session, hf_raise_for_status  # noqa: PLC0415 - only to fetch
    from huggingface_hub.utils._headers import build_hf_headers  # noqa: PLC0415 - likewise
    from huggingface_hub.utils._validators import validate_repo_id  # noqa: PLC0415 - likewise

    validate_repo_id(repo)
    url = f"{endpoint or constants.ENDPOINT}/api/models/{repo}/tree/{commit}?recursive=true"
    entries: list[dict[str, Any]] = []
    while url:
        response = get_session().get(url, headers=build_hf_headers(), timeout=_ASK_TIMEOUT_S)
        hf_raise_for_status(response)
        entries += response.json()
        url = response.links.get("next", {}).get("url", "")
    return entries


def _patiently(ask: Callable[[], T], patience: Patience, say: RemarkListener) -> T:
    """Ask again when the Hub is busy, as often as is fit and when it says. Raises what the last try raised."""
    from huggingface_hub.errors import HfHubHTTPError  # noqa: PLC0415 - takes half a second; only to fetch

    for failures in range(1, _ASK_TRIES):
        try:
            return ask()
        except HfHubHTTPError as error:
            wait_s = asked_s(error.response.headers)
            if error.response.status_code not in PASSING or (wait_s or 0) > patience.longest_asked_s:
                raise
            pause_s = patience.pause_before(failures) if wait_s is None else wait_s
            say(f"the Hub answered {error.response.status_code}: asking again in {pause_s:.0f} s")
            time.sleep(pause_s)
    return ask()


@contextmanager
def _as_download_failed(repo: str, revision: str | None) -> Iterator[None]:
    """Say the library's errors in our words."""
    from httpx2 import HTTPError  # noqa: PLC0415 - huggingface_hub's own HTTP library, loaded with it
    from huggingface_hub.errors import EntryNotFoundError, HFValidationError  # noqa: PLC0415 - only to fetch

    try:
        yield
    except (HTTPError, OSError, EntryNotFoundError, HFValidationError, RuntimeError) as error:
        raise _explained(error, repo, revision) from error


def _explained(error: BaseException, repo: str, revision: str | None) -> DownloadFailed:
    from httpx2 import HTTPError  # noqa: PLC0415 - huggingface_hub's own HTTP library, loaded with it
    from huggingface_hub import errors  # noqa: PLC0415 - only to fetch

    match error:
        case errors.GatedRepoError():  # before RepositoryNotFoundError, which it is too
            said = (
                f"{repo} is gated: its owner wants its terms accepted",
                f"accept them on the Hub, then {_LOG_IN}",
            )
        case errors.RevisionNotFoundError():
            said = (
                f"{repo} has no commit {revision}",
                "correct its revision in the catalog or in models.lock.yaml",
            )
        case errors.RepositoryNotFoundError():
            said = (
                f"the Hub has no {repo}, or not for you",
                f"correct its name in the catalog; for a private one {_LOG_IN}",
            )
        case errors.DisabledRepoError():
            said = f"the Hub has disabled {repo}", "choose another repository"
        case errors.OfflineModeIsEnabled():
            said = f"{repo} is not here, and HF_HUB_OFFLINE forbids asking the Hub", "unset HF_HUB_OFFLINE"
        case errors.HFValidationError():
            said = f"'{repo}' is not a repository name", "write it as on the Hub, such as Qwen/Qwen3-14B-AWQ"
        case errors.HfHubHTTPError(response=response):
            said = _answered(response.status_code, repo)
        case HTTPError():
            said = f"the Hub cannot be reached for {repo}: {_line(error)}", GO_ON
        case _:
            said = f"the download of {repo} broke: {_line(error)}", GO_ON
    return DownloadFailed(said[0], hint=said[1], where=repo)


def _answered(status: int, repo: str) -> tuple[str, str]:
    match status:
        case HTTPStatus.UNAUTHORIZED:
            return f"the Hub does not accept this token for {repo}", f"it may have expired: {_LOG_IN}"
        case HTTPStatus.FORBIDDEN:
            return f"the Hub refuses {repo} to this account", f"ask its owner for access, then {_LOG_IN}"
        case _:
            return f"the Hub answered {status} for {repo}", "wait a little, then run the command again"


def _no_commit(repo: str) -> DownloadFailed:
    return DownloadFailed(
        f"the Hub names no commit for {repo}", hint="write its revision in the catalog", where=repo
    )


def _line(error: BaseException) -> str:
    """An error's first line, or its name."""
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__


class Account(Struct, frozen=True, kw_only=True):
    """The Hub as it answers us. `token`: the library sends one; `refused`: it is not valid there.

    `user` is whose token it is, None where the Hub does not say.
    """

    endpoint: str
    token: bool
    refused: bool = False
    user: str | None = None


def is_offline() -> bool:
    """Whether HF_HUB_OFFLINE forbids asking the Hub."""
    from huggingface_hub.constants import is_offline_mode  # noqa: PLC0415 - takes half a second

    return bool(is_offline_mode())


def whoami(*, timeout_s: float) -> Account:
    """Whether the Hub answers, and whose token it is sent, by one request. Blocks; raises DownloadFailed."""
    from httpx2 import HTTPError  # noqa: PLC0415 - huggingface_hub's own HTTP library, loaded with it
    from huggingface_hub import constants, get_session  # noqa: PLC0415 - takes half a second
    from huggingface_hub.utils._headers import build_hf_headers  # noqa: PLC0415 - likewise

    endpoint, headers = constants.ENDPOINT, build_hf_headers()
    try:
        answer = get_session().get(f"{endpoint}/api/whoami-v2", headers=headers, timeout=timeout_s)
    except HTTPError as error:
        message = f"the Hub ({endpoint}) cannot be reached: {_line(error)}"
        raise DownloadFailed(message, hint=f"curl -sS -o /dev/null {endpoint}", where=endpoint) from error
    if answer.status_code >= HTTPStatus.INTERNAL_SERVER_ERROR:
        message = f"the Hub ({endpoint}) answered {answer.status_code}"
        raise DownloadFailed(message, hint="wait a little, then try again", where=endpoint)
    token = "authorization" in {name.lower() for name in headers}
    return Account(
        endpoint=endpoint,
        token=token,
        refused=token and answer.status_code in {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN},
        user=_name_in(answer) if token and answer.is_success else None,
    )


def _name_in(answer: Response) -> str | None:
    try:
        return str(answer.json()["name"])
    except (ValueError, KeyError, TypeError):
        return None
