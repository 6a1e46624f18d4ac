"""A streaming client for ``/v1/chat/completions`` that times every chunk as it arrives.

Plain ``http.client``: it shares its cores with the server under test, so it does little per token.
"""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from urllib.parse import urlsplit

DONE = b"[DONE]"
READ_BYTES = 1 << 16


class StreamError(Exception):
    """The server refused the request or broke the stream off; the message says how."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """Tokens that arrived together. ``tokens`` counts all since the previous chunk."""

    at_s: float
    text: str
    tokens: int


@dataclass(slots=True)
class Exchange:
    """One request as the client saw it. Times are the clock's."""

    sent_s: float
    chunks: list[Chunk] = field(default_factory=list)  # without the empty first one
    end_s: float = 0.0
    completion_tokens: int = 0  # as the server counts, end token included
    shown_tokens: int = 0  # those of the chunks
    finish_reason: str | None = None

    @property
    def text(self) -> str:
        return "".join(chunk.text for chunk in self.chunks)

    @property
    def ttft_ms(self) -> float | None:
        return (self.chunks[0].at_s - self.sent_s) * 1e3 if self.chunks else None


def lines_of(read: Callable[[], bytes]) -> Iterator[bytes]:
    """Lines out of pieces cut anywhere; each line as soon as it is whole."""
    rest = b""
    while piece := read():
        *whole, rest = (rest + piece).split(b"\n")
        yield from whole


def events(lines: Iterable[bytes]) -> Iterator[Any]:
    """The JSON of each ``data:`` line, up to ``[DONE]``."""
    for line in lines:
        if not line.startswith(b"data:"):
            continue
        data = line[5:].strip()
        if data == DONE:
            return
        yield json.loads(data)
    raise StreamError("the stream ended without [DONE]")


def note_event(exchange: Exchange, event: Mapping[str, Any], at_s: float) -> Chunk | None:
    """Add one event to ``exchange``; the chunk, if the event brought text."""
    if error := event.get("error"):
        raise StreamError(str(error))
    usage = event.get("usage") or {}
    total = usage.get("completion_tokens")
    if total is not None:
        exchange.completion_tokens = total
    for choice in event.get("choices", ()):
        exchange.finish_reason = choice.get("finish_reason") or exchange.finish_reason
        if text := choice.get("delta", {}).get("content"):
            if total is None:
                exchange.completion_tokens += 1  # no usage per chunk: one token each
            # Tokens without text of their own, parts of a character, come with the next text.
            chunk = Chunk(at_s, text, max(1, exchange.completion_tokens - exchange.shown_tokens))
            exchange.shown_tokens += chunk.tokens
            exchange.chunks.append(chunk)
            return chunk
    return None


class Client:
    """Sends chat requests to one OpenAI-compatible server, a connection each."""

    def __init__(
        self,
        url: str,
        *,
        model: str = "default",
        timeout_s: float = 120.0,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"url must be http(s)://host[:port], got {url!r}")
        self._scheme, self._host, self._port = parts.scheme, parts.hostname, parts.port
        self._path = parts.path.rstrip("/").removesuffix("/v1") + "/v1/chat/completions"
        self._model, self._timeout_s, self._clock = model, timeout_s, clock

    def stream(
        self,
        prompt: str,
        *,
        max_tokens: int,
        options: Mapping[str, Any] | None = None,
        on_chunk: Callable[[Exchange, Chunk], None] = lambda exchange, chunk: None,
    ) -> Exchange:
        """Ask greedily and read the answer to its end; ``options`` join the request's body.

        Raises:
            StreamError, OSError, http.client.HTTPException: the request failed.
            ValueError: ``options`` ask for several answers, whose gaps would be mixed up.
        """
        if (options or {}).get("n", 1) != 1:
            raise ValueError(f"n must be 1: one stream is timed, got {(options or {})['n']!r}")
        body = {
            "model": self._model,
            "messages": [{"role": "user", "content": prompt}],
            "max_tokens": max_tokens,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True, "continuous_usage_stats": True},
            **(options or {}),
        }
        https = self._scheme == "https"
        connect = http.client.HTTPSConnection if https else http.client.HTTPConnection
        connection = connect(self._host, self._port, timeout=self._timeout_s)
        try:
            exchange = Exchange(sent_s=self._clock())
            headers = {"Content-Type": "application/json"}
            connection.request("POST", self._path, json.dumps(body), headers)
            response = connection.getresponse()
            if response.status != 200:
                text = response.read(500).decode(errors="replace")
                raise StreamError(f"HTTP {response.status}: {text}")
            for event in events(lines_of(partial(response.read1, READ_BYTES))):
                if chunk := note_event(exchange, event, self._clock()):
                    on_chunk(exchange, chunk)
            exchange.end_s = self._clock()
            return exchange
        finally:
            connection.close()
