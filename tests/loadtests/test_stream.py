"""SSE parsing, and the streaming client against a small server of this process."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest

from loadtests.stream import Client, Exchange, StreamError, events, lines_of, note_event


def delta(text: str | None, tokens: int | None = None) -> dict[str, Any]:
    event: dict[str, Any] = {"choices": [{"delta": {"content": text}, "finish_reason": None}]}
    if tokens is not None:
        event["usage"] = {"completion_tokens": tokens}
    return event


FINISH = {"choices": [{"delta": {}, "finish_reason": "stop"}]}


@pytest.mark.parametrize("size", [1, 3, 7, 1000])
def test_lines_survive_any_cut(size: int) -> None:
    whole = b'data: {"a": 1}\n\n: comment\ndata: [DONE]\n\n'
    pieces = [whole[start : start + size] for start in range(0, len(whole), size)] + [b""]
    assert b"\n".join(lines_of(iter(pieces).__next__)) + b"\n" == whole


def test_events_end_at_done() -> None:
    lines = [b'data: {"a": 1}', b"", b": ping", b'data:{"a": 2}\r', b"data: [DONE]", b"data: no"]
    assert list(events(lines)) == [{"a": 1}, {"a": 2}]


def test_a_broken_stream_is_an_error() -> None:
    with pytest.raises(StreamError, match="without"):
        list(events([b'data: {"a": 1}']))


def test_empty_first_chunk_is_no_token() -> None:
    exchange = Exchange(sent_s=1.0)
    assert note_event(exchange, delta(""), 1.1) is None
    assert exchange.ttft_ms is None
    assert note_event(exchange, delta("A", 1), 1.25) is not None
    assert exchange.ttft_ms == pytest.approx(250)


def test_coalesced_chunks_carry_their_tokens() -> None:
    exchange = Exchange(sent_s=0.0)
    for at_s, event in enumerate([delta("A", 1), delta("BCD", 4), delta(None, 5), delta("F", 6)]):
        note_event(exchange, event, float(at_s))
    assert [(chunk.at_s, chunk.tokens) for chunk in exchange.chunks] == [(0, 1), (1, 3), (3, 2)]
    assert exchange.text == "ABCDF"


def test_several_answers_are_not_timed_as_one() -> None:
    with pytest.raises(ValueError, match="n must be 1: one stream is timed, got 2"):
        Client("http://127.0.0.1:1").stream("hello", max_tokens=9, options={"n": 2})


def test_without_usage_a_chunk_is_a_token() -> None:
    exchange = Exchange(sent_s=0.0)
    for event in (delta("A"), delta("B"), FINISH):
        note_event(exchange, event, 0.0)
    assert [chunk.tokens for chunk in exchange.chunks] == [1, 1]
    assert exchange.completion_tokens == 2
    assert exchange.finish_reason == "stop"


def test_an_error_event_is_an_error() -> None:
    with pytest.raises(StreamError, match="out of room"):
        note_event(Exchange(0.0), {"error": {"message": "out of room"}}, 0.0)


class Handler(BaseHTTPRequestHandler):
    """Answers what it was asked, a word at a time; refuses the word "no"."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        prompt = body["messages"][0]["content"]
        assert body["stream"]
        assert self.path == "/v1/chat/completions"
        self.send_response(400 if prompt == "no" else 200)
        if prompt == "no":
            self.send_header("Content-Length", "3")
            self.end_headers()
            self.wfile.write(b"why")
            return
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        words = [delta(word, index + 1) for index, word in enumerate(prompt.split())]
        for event in (delta(""), *words, FINISH, None):
            data = "[DONE]" if event is None else json.dumps(event)
            line = f"data: {data}\n\n".encode()
            self.wfile.write(f"{len(line):x}\r\n".encode() + line + b"\r\n")
        self.wfile.write(b"0\r\n\r\n")

    def log_message(self, *_: Any) -> None:
        return


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_client_reads_a_stream(url: str) -> None:
    seen: list[str] = []
    exchange = Client(f"{url}/v1").stream(
        "one two three", max_tokens=9, on_chunk=lambda _, chunk: seen.append(chunk.text)
    )
    assert exchange.text == "onetwothree"
    assert seen == ["one", "two", "three"]
    assert exchange.finish_reason == "stop"
    assert exchange.completion_tokens == 3
    assert exchange.sent_s <= exchange.chunks[0].at_s <= exchange.end_s


def test_a_refusal_says_why(url: str) -> None:
    with pytest.raises(StreamError, match="HTTP 400: why"):
        Client(url).stream("no", max_tokens=9)


@pytest.mark.parametrize("wrong", ["127.0.0.1:80", "ftp://x", "http://"])
def test_wrong_url(wrong: str) -> None:
    with pytest.raises(ValueError, match="http"):
        Client(wrong)
