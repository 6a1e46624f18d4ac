"""Arithmetic from raw gaps to figures, on numbers that can be checked by hand."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from loadtests.percentile import percentile
from loadtests.record import Gap, Record, answered, gaps_of, read, write
from loadtests.stream import Chunk, Exchange
from loadtests.summary import accuracy, faults, itls_ms, running, summarise, violation_rate, windows

RECORD = Record(
    index=0, task="math", problem=0, due_s=0.0, sent_s=0.0, end_s=2.0, ttft_ms=5.0, tokens=4,
    finish_reason="stop", text="#### 4", correct=True,
    gaps=[Gap(0.5, 10.0, 1), Gap(1.5, 40.0, 2)],
)  # fmt: skip
FAILED = replace(
    RECORD, index=1, task="code", error="refused", correct=False, gaps=[], tokens=0, ttft_ms=None
)


def test_percentile_is_numpys() -> None:
    assert percentile([4.0, 1.0, 3.0, 2.0], 50) == 2.5
    assert percentile([1.0, 2.0], 95) == pytest.approx(1.95)
    assert percentile([7.0], 99) == 7.0
    with pytest.raises(ValueError, match="at least one"):
        percentile([], 50)


def test_gaps_leave_out_the_first_chunk() -> None:
    exchange = Exchange(9.0, [Chunk(10.0, "a", 1), Chunk(10.02, "b", 1), Chunk(10.08, "cd", 2)])
    first, second = gaps_of(exchange, origin_s=10.0)
    assert (first.at_s, first.gap_ms, first.tokens) == (
        pytest.approx(0.02), pytest.approx(20.0), 1,
    )  # fmt: skip
    assert (second.itl_ms, second.tokens) == (pytest.approx(30.0), 2)


def test_a_coalesced_chunk_counts_each_token() -> None:
    assert itls_ms(RECORD.gaps) == [10.0, 20.0, 20.0]
    assert violation_rate(itls_ms(RECORD.gaps), slo_ms=15) == pytest.approx(2 / 3)
    assert violation_rate([20.0], slo_ms=20) == 0  # within means up to and including
    assert violation_rate([], slo_ms=20) == 0


def test_latencies_are_defined_as_in_sglangs_benchmark() -> None:
    """One timeline through both: percentiles of TTFT, ITL per token, and TPOT of each request."""
    from sglang.benchmark.serving import RequestFuncOutput, calculate_metrics

    rng = random.Random(4)
    records, outputs = [], []
    for index in range(20):
        sent_s, at_s = 0.1 * index, 0.1 * index + rng.uniform(0.05, 0.5)
        exchange = Exchange(sent_s, [Chunk(at_s, "a", 1)], completion_tokens=2)  # with an end token
        for tokens in rng.choices([1, 1, 1, 3], k=rng.randrange(1, 30)):
            at_s += rng.uniform(0.005, 0.08)
            exchange.chunks.append(Chunk(at_s, "b", tokens))
            exchange.completion_tokens += tokens
        exchange.end_s = at_s + 0.01
        record = answered(replace(RECORD, index=index), exchange, origin_s=0.0)
        records.append(record)
        output = RequestFuncOutput(
            generated_text=exchange.text,
            success=True,
            latency=exchange.end_s - sent_s,
            ttft=exchange.chunks[0].at_s - sent_s,
            itl=[each / 1e3 for each in itls_ms(record.gaps)],
            output_len=exchange.completion_tokens,
            start_time=sent_s,
        )
        outputs.append(output)
    words = SimpleNamespace(encode=lambda text, **_: text)
    theirs, _ = calculate_metrics(None, outputs, 9.0, words, "sglang")  # type: ignore[arg-type]
    ours = summarise(records, slo_itl_ms=None, slo_attainment=0.95)
    for name in ("ttft", "itl", "tpot"):
        for percent in (90, 95, 99):
            expected = getattr(theirs, f"p{percent}_{name}_ms")
            assert ours[f"{name}_ms"][f"p{percent}"] == pytest.approx(expected, abs=1e-3)
    assert replace(RECORD, error="broken off").tpot_ms is None  # their benchmark leaves it out too


def test_windows_skip_silence() -> None:
    gaps = [Gap(0.1, 1.0, 1), Gap(0.9, 3.0, 1), Gap(2.5, 8.0, 2)]
    assert windows(gaps, 50) == [(0.5, 2.0), (2.5, 4.0)]


def test_accuracy_counts_failures_as_wrong_and_waits_for_the_check() -> None:
    assert accuracy([RECORD, replace(RECORD, correct=False)], "math") == 0.5
    assert accuracy([RECORD, replace(RECORD, correct=None)], "math") is None
    assert accuracy([RECORD], "code") is None


def test_running_requests() -> None:
    records = [RECORD, replace(RECORD, sent_s=1.0, end_s=3.0)]
    assert [running(records, at_s) for at_s in (0.5, 1.5, 2.5, 3.0)] == [1, 2, 1, 0]


def test_summary_of_a_load() -> None:
    summary = summarise([RECORD, FAILED], slo_itl_ms=15, slo_attainment=0.5)
    assert (summary["requests"], summary["failed"], summary["tokens"]) == (2, 1, 4)
    assert summary["tokens_per_s"] == 2
    assert summary["accuracy"] == {"code": 0.0, "math": 1.0}
    assert summary["slo"]["attainment"] == pytest.approx(1 / 3)
    assert [reason.split()[0] for reason in faults(summary)] == ["1", "33.33%"]


def test_a_load_passes_only_on_evidence() -> None:
    good = summarise([RECORD], slo_itl_ms=20, slo_attainment=1.0)
    assert faults(good) == []
    assert faults(summarise([], slo_itl_ms=20, slo_attainment=0.9))[0] == "no request was sent"
    silent = summarise([replace(RECORD, gaps=[])], slo_itl_ms=20, slo_attainment=0.9)
    assert "nothing attained" in faults(silent)[0]
    assert faults(summarise([RECORD], slo_itl_ms=None, slo_attainment=0.9)) == []


def test_records_come_back_from_disk(tmp_path: Path) -> None:
    write(tmp_path / "requests.jsonl", [RECORD, FAILED])
    assert read(tmp_path / "requests.jsonl") == [RECORD, FAILED]
