"""Record a server's forward passes, as SGLang publishes them, until interrupted.

    python -m sglang.launch_server ... --enable-forward-pass-metrics \\
        --forward-pass-metrics-ipc-name ipc:///tmp/passes
    python -m benchmarks.controller.record_passes ipc:///tmp/passes.0 passes.jsonl

One JSON object per pass, with SGLang's fields; ".0" is the data-parallel rank.
"""

from __future__ import annotations

import argparse
import json
import signal
from pathlib import Path

import msgspec
import zmq


def record(endpoint: str, path: Path) -> int:
    """Number of passes written; returns on SIGINT or SIGTERM."""
    is_over = False

    def end(*_: object) -> None:
        nonlocal is_over
        is_over = True

    for sign in (signal.SIGINT, signal.SIGTERM):
        signal.signal(sign, end)
    passes = 0
    with zmq.Context() as context, context.socket(zmq.SUB) as socket, path.open("w", 1) as file:
        socket.setsockopt(zmq.RCVTIMEO, 200)  # ms between two looks at is_over
        socket.subscribe(b"")
        socket.connect(endpoint)
        while not is_over:
            try:
                _topic, _number, payload = socket.recv_multipart()
            except zmq.Again:
                continue
            fields = msgspec.msgpack.decode(payload)
            if fields["wall_time"]:  # 0: a heartbeat of an idle server
                file.write(json.dumps(fields) + "\n")
                passes += 1
    return passes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("endpoint", help="of the publisher, such as ipc:///tmp/passes.0")
    parser.add_argument("path", type=Path, help="JSON lines file to write")
    options = parser.parse_args()
    print(record(options.endpoint, options.path), "passes")


if __name__ == "__main__":
    main()
