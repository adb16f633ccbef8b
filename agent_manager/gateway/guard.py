"""Who may talk to the gateway: programs on this machine, or whoever has the key. No web page.

A page that a browser shows can send requests to loopback. It betrays itself by `Origin` or `Sec-Fetch-Site`; one
that had its own name resolved to 127.0.0.1 by `Host`.
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from agent_manager.gateway.tickets import RefusedError

if TYPE_CHECKING:
    from collections.abc import Mapping

_LOOPBACK: Final = frozenset({"localhost", "127.0.0.1", "::1"})
_OWN_PAGES: Final = frozenset({"none", "same-origin"})
"""`Sec-Fetch-Site` of what a person typed, and of our own pages, of which there are none."""


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

    def _check_host(self, host: str) -> None:
        name = _host_name(host)
        if name in _LOOPBACK:
            return
        # Behind a key the gateway listens to others, who name it by its address or by its name in their network.
        if self.key is not None and name:
            return
        raise RefusedError(403, "host_refused", "this gateway answers to localhost only")

    def _check_key(self, headers: Mapping[str, str]) -> None:
        scheme, _, given = headers.get("Authorization", "").partition(" ")
        shown = given.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")
        if not hmac.compare_digest(shown.encode(), (self.key or "").encode()):
            raise RefusedError(401, "wrong_api_key", "this gateway needs its API key as a bearer token")


def _host_name(host: str) -> str:
    """`[::1]:8000` → `::1`; "" for what is no host."""
    if host.startswith("["):
        return host[1:].partition("]")[0].lower()
    name, _, port = host.partition(":")
    return name.lower() if not port or port.isdecimal() else ""
