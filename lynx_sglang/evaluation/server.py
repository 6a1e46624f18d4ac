"""The server under measurement: its state, its settings, its answers."""

from __future__ import annotations

import json
from types import TracebackType
from typing import Any

import aiohttp

from lynx_sglang.connection import Connection
from lynx_sglang.errors import LynxError
from lynx_sglang.evaluation.divergence import TOP
from lynx_sglang.evaluation.point import KNOBS, update_of

ANSWER_TIMEOUT_S = 3600.0
CHANGE = "/set_internal_state"


class EvaluationError(LynxError):
    """The measurement cannot begin or go on; the message says why."""


class Server:
    """One running SGLang server with Lynx. Leaving the block drops what is still asked."""

    def __init__(self, connection: Connection) -> None:
        self.url, self._connection = connection.url, connection
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Server:
        limits = aiohttp.ClientTimeout(total=ANSWER_TIMEOUT_S)
        connector = aiohttp.TCPConnector(limit=0)
        self._session = aiohttp.ClientSession(timeout=limits, connector=connector)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._session is not None
        await self._session.close()

    async def info(self) -> dict[str, Any]:
        """``/server_info``.

        Raises:
            EvaluationError: no server answers, or not one with one scheduler under Lynx.
        """
        info = self._connection.parsed(await self._text("GET", "/server_info"))
        states = info["internal_states"]
        if len(states) != 1 or "lynx" not in states[0]:
            raise EvaluationError(
                f"{self.url}: needs one scheduler with --moe-backend lynx, "
                f"got {sum('lynx' in state for state in states)} of {len(states)} with it"
            )
        return info

    async def lynx(self) -> dict[str, Any]:
        part: dict[str, Any] = (await self.info())["internal_states"][0]["lynx"]
        return part

    async def knobs(self) -> dict[str, Any]:
        """The settings that a point changes, as they are; those that this server has."""
        present = (await self.lynx())["settings"]
        return {name: present[name] for name in KNOBS if name in present}

    async def set(self, knobs: dict[str, Any]) -> None:
        """Raises: EvaluationError: the server did not take them."""
        state = await self.lynx()
        present = {name: value for name, value in knobs.items() if name in state["settings"]}
        update = update_of(present)
        taken = await self._ask("POST", CHANGE, {"server_args": update})
        if taken != [True]:
            raise EvaluationError(f"{self.url}: did not take the settings {update}")

    async def answer(self, prompt: list[int], max_tokens: int) -> dict[str, Any]:
        """A greedy answer to token ids, with its log-probabilities."""
        return await self._generate(prompt, max_tokens, logprob_start_len=-1)

    async def score(self, tokens: list[int], start: int) -> dict[str, Any]:
        """The full model's log-probabilities of ``tokens[start:]``, by prefill."""
        return await self._generate(tokens, 0, logprob_start_len=start - 1)

    async def _generate(
        self, tokens: list[int], max_tokens: int, *, logprob_start_len: int
    ) -> dict[str, Any]:
        body = {
            "input_ids": tokens,
            "sampling_params": {"temperature": 0, "max_new_tokens": max_tokens},
            "return_logprob": True,
            "top_logprobs_num": TOP,
            "logprob_start_len": logprob_start_len,
        }
        answer: dict[str, Any] = await self._ask("POST", "/generate", body)
        return answer

    async def _ask(self, method: str, path: str, body: Any = None) -> Any:
        text = await self._text(method, path, body)
        try:
            return json.loads(text)
        except ValueError:
            raise EvaluationError(f"{self.url}{path}: no JSON: {text[:300]!r}") from None

    async def _text(self, method: str, path: str, body: Any = None) -> str:
        assert self._session is not None
        headers = self._connection.headers(is_admin=path == CHANGE)
        asking = self._session.request(method, self.url + path, json=body, headers=headers)
        try:
            async with asking as response:
                text = await response.text(errors="replace")
        except (aiohttp.ClientError, TimeoutError) as error:
            raise EvaluationError(f"{self.url}{path}: {error or type(error).__name__}") from error
        if response.status in (401, 403, 404):
            raise EvaluationError(self._connection.refused(response.status))
        if response.status != 200:
            raise EvaluationError(f"{self.url}{path}: HTTP {response.status}: {text[:300]}")
        return text
