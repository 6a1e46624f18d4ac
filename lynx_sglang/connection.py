"""A running server as the ``lynx-sglang`` command reaches it: address, keys, state."""

from __future__ import annotations

import argparse
import json
import os
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from lynx_sglang.errors import LynxError, short

TIMEOUT_S = 10.0
DEFAULT_URL = "http://127.0.0.1:30000"
KEY_VARIABLE, ADMIN_KEY_VARIABLE = "SGLANG_API_KEY", "SGLANG_ADMIN_API_KEY"


class ConnectionFailed(LynxError):
    """No server with Lynx answers there; the message says where and why."""


@dataclass(frozen=True, slots=True)
class Connection:
    """A server's address and API keys."""

    url: str  # scheme and host, without a path's last slash
    api_key: str | None = None
    admin_api_key: str | None = None  # where the server has one: for /set_internal_state

    @classmethod
    def of(cls, args: argparse.Namespace, url: str | None = None) -> Connection:
        """Of --url, or of ``url`` where there are several.

        Raises:
            ConnectionFailed: it is no address.
        """
        admin_key = args.admin_api_key or os.environ.get(ADMIN_KEY_VARIABLE)
        api_key = args.api_key or os.environ.get(KEY_VARIABLE)
        return cls(whole_url(url or args.url), api_key or None, admin_key or None)

    def headers(self, *, is_admin: bool = False) -> dict[str, str]:
        key = (is_admin and self.admin_api_key) or self.api_key
        return {"Authorization": f"Bearer {key}"} if key else {}

    def server_info(self) -> dict[str, Any]:
        """``/server_info``; raises ConnectionFailed."""
        request = urllib.request.Request(f"{self.url}/server_info", headers=self.headers())
        return self.parsed(self._answer(request))

    def change(self, entries: Mapping[str, Any]) -> None:
        """Change settings, all or none.

        Args:
            entries: of the body of ``/set_internal_state``, numbers or words.

        Raises:
            ConnectionFailed: the server did not take them; with its reason.
        """
        request = urllib.request.Request(
            f"{self.url}/set_internal_state",
            data=json.dumps({"server_args": entries}).encode(),
            headers={"Content-Type": "application/json", **self.headers(is_admin=True)},
        )
        answer = self._answer(request)
        if b"false" in answer:
            raise ConnectionFailed(f"{self.url}: did not take the settings: {short(answer)}")

    def _answer(self, request: urllib.request.Request) -> bytes:
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT_S) as response:
                body: bytes = response.read()
        except urllib.error.HTTPError as error:
            raise ConnectionFailed(self.refused(error.code, error.read())) from None
        except (OSError, ValueError) as error:  # ValueError: no HTTP at that port
            raise ConnectionFailed(f"{self.url}: {error}") from None
        return body

    def lynx_parts(self) -> list[dict[str, Any]]:
        """The ``lynx`` part of each replica's state, in order; ConnectionFailed without any."""
        states = self.server_info()["internal_states"]
        parts = [state["lynx"] for state in states if isinstance(state.get("lynx"), dict)]
        if not parts:
            raise ConnectionFailed(f"{self.url} runs without --moe-backend lynx")
        return sorted(parts, key=replica_of)  # SGLang answers in the order that they answered

    def refused(self, status: int, body: bytes = b"") -> str:
        if status in (401, 403):
            return (
                f"{self.url}: HTTP {status}: give the server's key with --api-key, "
                f"or in the environment as {KEY_VARIABLE}"
            )
        if status == 400 and body:
            return f"{self.url}: {reason_of(body)}"
        return f"{self.url}: HTTP {status}: is this an SGLang server, and no router before it?"

    def parsed(self, text: bytes | str) -> dict[str, Any]:
        """A ``/server_info`` body; raises ConnectionFailed for anything else."""
        try:
            info = json.loads(text)
            states = info["internal_states"]
        except (ValueError, TypeError, KeyError, RecursionError):
            states = None
        if not isinstance(states, list) or not all(isinstance(each, dict) for each in states):
            raise ConnectionFailed(f"{self.url}: no SGLang server, it answers {short(text)}")
        whole: dict[str, Any] = info
        return whole


def replica_of(part: dict[str, Any]) -> int:
    """Number of a replica in its server (--dp-size); 0 for the only one."""
    return (part.get("ranks") or {}).get("replica") or 0


def reason_of(body: bytes) -> str:
    """The message of an error's body, in any of SGLang's forms; or the body."""
    try:
        answer = json.loads(body)
        return str(answer.get("message") or answer.get("detail") or answer["error"]["message"])
    except (ValueError, TypeError, KeyError, AttributeError):
        return short(body)


def whole_url(text: str) -> str:
    """``text`` with a scheme; raises ConnectionFailed where it is no HTTP address."""
    url = text if "://" in text else f"http://{text}"
    try:
        parts = urlsplit(url)
        is_address = parts.scheme in ("http", "https") and bool(parts.hostname)
        is_address = is_address and parts.port != 0
    except ValueError:  # a port that is no number
        is_address = False
    if not is_address or any(letter.isspace() for letter in url):
        raise ConnectionFailed(f"--url: expected http://HOST:PORT, got {short(text)}")
    return url.rstrip("/")


def add_arguments(parser: argparse.ArgumentParser, *, is_several: bool = False) -> None:
    """Address and keys; ``is_several``: --url can be given again, and is None where it is not."""
    if is_several:
        parser.add_argument(
            "--url", action="append", help=f"server; again for each replica (default {DEFAULT_URL})"
        )
    else:
        parser.add_argument("--url", default=DEFAULT_URL, help="server (default %(default)s)")
    parser.add_argument(
        "--api-key", help=f"the server's --api-key (default: environment, {KEY_VARIABLE})"
    )
    parser.add_argument(
        "--admin-api-key",
        help=f"the server's --admin-api-key, where it has one, to change settings "
        f"(default: environment, {ADMIN_KEY_VARIABLE})",
    )
