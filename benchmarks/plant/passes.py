"""SGLang's own record of forward passes (`--enable-forward-pass-metrics`), one JSON object a line.

A record holds the requests that a pass decoded and prefilled, their KV tokens, and the device's
time: enough for the load of a playback. It holds neither active experts nor demand, and no start
time, so the host's time between two passes is unknown.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

VERSION: Final = 1  # of SGLang's record, FPM_VERSION in 0.5.23


@dataclass(frozen=True, slots=True)
class DecodePass:
    rows: int
    kv_tokens: int
    step_ms: float
    outside_ms: float  # prefills since the decode pass before it, where a stream waited for them


def is_passes(line: str) -> bool:
    """Whether a file that begins so is such a record."""
    return '"scheduled_requests"' in line and '"wall_time"' in line


def read(path: Path) -> Iterator[DecodePass]:
    """The passes that only decode; mixed ones count as time that streams lost.

    Raises ValueError for another kind or version of record. Stops at a torn last line.
    """
    prefills_ms, joined = 0.0, 0  # since the last pass that only decoded
    with path.open() as lines:
        for line in lines:
            try:
                told = json.loads(line)
            except ValueError:
                return
            asked, wall_ms = _asked(told, path), 1e3 * float(told["wall_time"])
            if asked["num_prefill_requests"]:
                prefills_ms += wall_ms
                joined += asked["num_prefill_requests"]
            elif rows := asked["num_decode_requests"]:
                has_waited = rows > joined
                lost_ms = prefills_ms if has_waited else 0.0
                yield DecodePass(rows, asked["sum_decode_kv_tokens"], wall_ms, lost_ms)
                prefills_ms, joined = 0.0, 0


def _asked(told: dict[str, Any], path: Path) -> dict[str, int]:
    try:
        version, asked = told["version"], told["scheduled_requests"]
    except (KeyError, TypeError):
        raise ValueError(f"{path} is no record of SGLang's forward passes") from None
    if version != VERSION:
        raise ValueError(f"{path} has version {version!r}; this reads version {VERSION}")
    requests: dict[str, int] = asked
    return requests
