"""Who may talk to the gateway: programs on this machine, or whoever has the key. No web page.

A page that a browser shows can send requests to loopback. It betrays itself by `Origin` or `Sec-Fetch-Site`; one
that had its own name resolved to 127.0.0.1 by `Host`.
"""

from __future__ import annotations

import functools
import hmac
import re
from ipaddress import ip_address
from typing import TYPE_CHECKING, Final

from msgspec import Struct

from agent_manager.errors import UsageError
from agent_manager.gateway.tickets import RefusedError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from agent_manager.catalog.agents import Gateway
    from agent_manager.gateway.messages import Header

_HOST: Final = re.compile(r"(?:\[([0-9a-f:.]+)\]|([^\[\]:]+))(?::\d*)?", re.ASCII | re.IGNORECASE)
_OWN_PAGES: Final = frozenset({"none", "same-origin"})
"""`Sec-Fetch-Site` of what a person typed, and of our own pages, of which there are none."""
_EXPOSED: Final = b"Retry-After, X-Agent-Manager-Swap, X-Agent-Manager-Waited-Ms"
_PREFLIGHT_AGE_S: Final = 600
"""How long a browser may remember what a page may send."""


class Guard(Struct, frozen=True, kw_only=True):
    """What is checked before anything is read. `key` None: loopback only, and no key is asked for.

    `origins` are those pages that may all the same, as browsers name them: `http://localhost:3000`.
    """

    key: str | None = None
    origins: frozenset[str] = frozenset()

    def check(self, headers: Mapping[str, str], *, open_to_all: bool = False) -> None:
        """Raises RefusedError. `headers` by name in lower case. `open_to_all`: needs no key (health)."""
        self._check_host(headers.get("host", ""))
        origin = headers.get("origin")
        if origin is not None and origin not in self.origins:
            raise RefusedError(403, "origin_refused", f"pages of {origin[:200]} may not talk to this gateway")
        site = headers.get("sec-fetch-site")
        if origin is None and site is not None and site not in _OWN_PAGES:
            raise RefusedError(403, "origin_refused", "web pages may not talk to this gateway")
        if self.key is not None and not open_to_all:
            self._check_key(headers)

    def preflight(self, headers: Mapping[str, str]) -> tuple[Header, ...]:
        """What a browser is told that asks, on behalf of a page that passed `check`, what the page may send.

        The rules are those of the Fetch standard; the last is of Private Network Access, for pages from elsewhere.
        """
        allowed = {
            "Access-Control-Allow-Methods": "GET, POST, DELETE",
            "Access-Control-Allow-Headers": headers.get("access-control-request-headers", ""),
            "Access-Control-Max-Age": str(_PREFLIGHT_AGE_S),
        }
        if headers.get("access-control-request-private-network") == "true":
            allowed["Access-Control-Allow-Private-Network"] = "true"
        return tuple((name.encode(), value.encode("latin-1")) for name, value in allowed.items() if value)

    def shown_to(self, headers: Mapping[str, str]) -> tuple[Header, ...]:
        """The headers of an answer that let the page that asked read it; none for anybody else."""
        origin = headers.get("origin")
        if origin is None or origin not in self.origins:
            return ()
        return (
            (b"Access-Control-Allow-Origin", origin.encode("latin-1")),
            (b"Access-Control-Expose-Headers", _EXPOSED),
            (b"Vary", b"Origin"),
        )

    def _check_host(self, host: str) -> None:
        name, is_loopback = _named(host)
        if is_loopback:
            return
        # Behind a key the gateway listens to others, who name it by its address or by its name in their network.
        if self.key is not None and name:
            return
        raise RefusedError(403, "host_refused", "this gateway answers to localhost only")

    def _check_key(self, headers: Mapping[str, str]) -> None:
        scheme, _, given = headers.get("authorization", "").partition(" ")
        shown = given.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")
        if not hmac.compare_digest(shown.encode("latin-1"), (self.key or "").encode()):
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
def _named(host: str) -> tuple[str, bool]:
    """The name in a `Host` ("" for what is no host), and whether it is this machine's.

    `[::1]:8000` → `::1`. By its name, or by an address, which nobody can bend elsewhere.
    """
    found = _HOST.fullmatch(host)
    name = (found[1] or found[2]).lower() if found else ""
    if name == "localhost":
        return name, True
    try:
        return name, ip_address(name).is_loopback
    except ValueError:
        return name, False
