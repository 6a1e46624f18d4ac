"""Write down what a server's forward passes were, as SGLang publishes them, until interrupted.

    python -m sglang.launch_server ... --enable-forward-pass-metrics \\
        --forward-pass-metrics-ipc-name ipc:///tmp/passes
    python -m benchmarks.controller.record_passes ipc:///tmp/passes.0 passes.jsonl

One JSON object per pass, SGLang's own fields; ".0" is the data-parallel rank.
"""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path

import msgspec
import zmq


def record(endpoint: str, path: Path) -> int:
    """Passes written; returns when the process is told to end."""
    is_over = False

    def end(*_: object) -> None:
        nonlocal is_over
        is_over = True

    for sign in (signal.SIGINT, signal.SIGTERM):
        signal.signal(sign, end)
    passes = 0
    with zmq.Context() as context, context.socket(zmq.SUB) as socket, path.open("w", 1) as file:
        socket.setsockopt(zmq.RCVTIMEO, 200)  # ms until the end is looked for again
        socket.subscribe(b"")
        socket.connect(endpoint)
        while not is_over:
            try:
                _topic, _number, payload = socket.recv_multipart()
            except zmq.Again:
                continue
            told = msgspec.msgpack.decode(payload)
            if told["wall_time"]:  # else a sign of life from an idle server
                file.write(json.dumps(told) + "\n")
                passes += 1
    return passes


if __name__ == "__main__":
    print(record(sys.argv[1], Path(sys.argv[2])), "passes")
