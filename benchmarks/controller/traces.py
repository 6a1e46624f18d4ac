"""Requests of the scorecard's served scenarios: an extract of the Azure traces, and synthetic ones.

azure_2023.csv: one minute each of the Azure LLM inference traces 2023 (code: minute 14, with the
busiest ten seconds; conv: minute 31), CC-BY 4.0, github.com/Azure/AzurePublicDataset. `read_whole`
takes the published files.
"""

from __future__ import annotations

import csv
import math
from datetime import datetime
from pathlib import Path

import numpy as np

from benchmarks.plant.serving import Request

EXTRACT = Path(__file__).with_name("azure_2023.csv")


def read_extract(trace: str) -> list[Request]:
    with EXTRACT.open() as lines:
        rows = [row for row in csv.DictReader(lines) if row["trace"] == trace]
    return [Request(float(r["at_ms"]), int(r["prompt"]), int(r["output"])) for r in rows]


def read_whole(path: Path) -> list[Request]:
    """One of the published files: TIMESTAMP, ContextTokens, GeneratedTokens."""
    with path.open() as lines:
        rows = list(csv.DictReader(lines))
    at = [datetime.fromisoformat(row["TIMESTAMP"][:26]) for row in rows]
    return [
        Request(
            1e3 * (when - at[0]).total_seconds(),
            int(row["ContextTokens"]),
            max(1, int(row["GeneratedTokens"])),
        )
        for when, row in zip(at, rows, strict=True)
    ]


def stretches(rng: np.random.Generator, rates: list[tuple[float, float]]) -> list[Request]:
    """Poisson arrivals: (ms, requests per s) one after the other; otherwise as in `diurnal`."""
    requests: list[Request] = []
    at_ms = end_ms = 0.0
    for length_ms, per_s in rates:
        at_ms, end_ms = end_ms, end_ms + length_ms
        while (at_ms := at_ms + float(rng.exponential(1e3 / per_s))) < end_ms:
            requests.append(Request(at_ms, 0, int(rng.geometric(0.01))))
    return requests


def diurnal(rng: np.random.Generator, length_ms: float, peak_per_s: float) -> list[Request]:
    """Poisson arrivals whose rate goes from a tenth of the peak up to it and back.

    Prompts were prefilled elsewhere (0 tokens); outputs are geometric with mean 100.
    """
    requests: list[Request] = []
    at_ms = 0.0
    while True:
        at_ms += float(rng.exponential(1e3 / peak_per_s))
        if at_ms >= length_ms:
            return requests
        share = 0.55 - 0.45 * math.cos(2.0 * math.pi * at_ms / length_ms)
        if rng.random() < share:
            requests.append(Request(at_ms, 0, int(rng.geometric(0.01))))
