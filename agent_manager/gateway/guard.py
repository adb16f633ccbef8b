"""Who may talk to the gateway: programs on this machine, or whoever has the key. No web page.

A page that a browser shows can send requests to loopback. It betrays itself by `Origin` or `Sec-Fetch-Site`; one
that had its own name resolved to 127.0.0.1 by `Host`.
"""

from __future__ import annotations

import functools
import hmac
import re
from dataclasses import dataclass
from ipaddress import ip_address
from typing import TYPE_CHECKING, Final

from agent_manager.errors import UsageError
from agent_manager.gateway.tickets import RefusedError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from agent_manager.catalog.agents import Gateway

_HOST: Final = re.compile(r"(?:\[([0-9a-f:.]+)\]|([^\[\]:]+))(?::\d*)?", re.ASCII | re.IGNORECASE)
_OWN_PAGES: Final = frozenset({"none", "same-origin"})
"""`Sec-Fetch-Site` of what a person typed, and of our own pages, of which there are none."""
_EXPOSED: Final = "Retry-After, X-Agent-Manager-Swap, X-Agent-Manager-Waited-Ms"
_PREFLIGHT_AGE_S: Final = 600
"""How long a browser may remember what a page may send."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Guard:
    """What is checked before anything is read. `key` None: loopback only, and no key is asked for.

    `origins` are those pages that may all the same, as browsers name them: `http://localhost:3000`.
    """

    key: str | None = None
    origins: frozenset[str] = frozenset()

    def check(self, headers: Mapping[str, str], *, open_to_all: bool = False) -> None:
        """Raises RefusedError. `open_to_all`: needs no key (health)."""
        self._check_host(headers.get("Host", ""))
        origin = headers.get("Origin")
        if origin is not None and origin not in self.origins:
            raise RefusedError(403, "origin_refused", f"pages of {origin[:200]} may not talk to this gateway")
        site = headers.get("Sec-Fetch-Site")
        if origin is None and site is not None and site not in _OWN_PAGES:
            raise RefusedError(403, "origin_refused", "web pages may not talk to this gateway")
        if self.key is not None and not open_to_all:
            self._check_key(headers)

    def preflight(self, headers: Mapping[str, str]) -> dict[str, str]:
        """What a browser is told that asks, on behalf of a page that passed `check`, what the page may send.

        The rules are those of the Fetch standard; the last is of Private Network Access, for pages from elsewhere.
        """
        allowed = {
            "Access-Control-Allow-Methods": "GET, POST, DELETE",
            "Access-Control-Allow-Headers": headers.get("Access-Control-Request-Headers", ""),
            "Access-Control-Max-Age": str(_PREFLIGHT_AGE_S),
        }
        if headers.get("Access-Control-Request-Private-Network") == "true":
            allowed["Access-Control-Allow-Private-Network"] = "true"
        return {name: value for name, value in allowed.items() if value}

    def shown_to(self, headers: Mapping[str, str]) -> dict[str, str]:
        """The headers of an answer that let the page that asked read it; none for anybody else."""
        origin = headers.get("Origin")
        if origin is None or origin not in self.origins:
            return {}
        return {
            "Access-Control-Allow-Origin": origin,
            "Access-Control-Expose-Headers": _EXPOSED,
            "Vary": "Origin",
        }

    def _check_host(self, host: str) -> None:
        name = _host_name(host)
        if _is_loopback(name):
            return
        # Behind a key the gateway listens to others, who name it by its address or by its name in their network.
        if self.key is not None and name:
            return
        raise RefusedError(403, "host_refused", "this gateway answers to localhost only")

    def _check_key(self, headers: Mapping[str, str]) -> None:
        scheme, _, given = headers.get("Authorization", "").partition(" ")
        shown = given.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")
        if not hmac.compare_digest(shown.encode("utf-8", "surrogateescape"), (self.key or "").encode()):
            raise RefusedError(401, "wrong_api_key", "this gateway needs its API key as a bearer token")


def read_key(settings: Gateway, environ: Mapping[str, str], warn: Callable[[str], None]) -> str | None:
    """The key that clients must show, None where the catalog asks for none.

    Raises UsageError when it is not where the catalog says. `warn` hears of a file that others can read.
    """
    if settings.api_key_env is not None:
        key, where = environ.get(settings.api_key_env, ""), f"${settings.api_key_env}"
    elif settings.api_key_file is not None:
        path, where = settings.api_key_file, str(settings.api_key_file)
        try:
            key, mode = path.read_text("utf-8"), path.stat().st_mode
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is no text"
            raise UsageError(
                f"the gateway's key cannot be read from {where}: {reason}", where=where
            ) from None
        if mode & 0o077:
            warn(f"others can read the gateway's key in {where}; 'chmod 600 {where}' keeps it yours")
    else:
        return None
    if not key.strip():
        raise UsageError(
            f"the gateway's key is to be in {where}, and nothing is there",
            hint="put a long random text there, such as that of 'openssl rand -hex 32'",
            where=where,
        )
    return key.strip()


@functools.lru_cache(maxsize=64)
def _is_loopback(name: str) -> bool:
    """Whether a `Host` is this machine's: by its name, or by an address, which nobody can bend elsewhere."""
    if name == "localhost":
        return True
    try:
        return ip_address(name).is_loopback
    except ValueError:
        return False


def _host_name(host: str) -> str:
    """`[::1]:8000` → `::1`; "" for what is no host."""
    found = _HOST.fullmatch(host)
    return (found[1] or found[2]).lower() if found else ""
