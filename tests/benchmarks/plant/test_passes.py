"""SGLang's record of forward passes; `passes.jsonl` is one of the bundled model's CPU server."""

import json
from pathlib import Path

import pytest

from benchmarks.plant import passes

RECORD = Path(__file__).with_name("passes.jsonl")


def told(decode: int, prefill: int = 0, wall_s: float = 0.01, **change: object) -> str:
    asked = {
        "num_decode_requests": decode,
        "sum_decode_kv_tokens": 100 * decode,
        "num_prefill_requests": prefill,
    }
    record = {"version": 1, "wall_time": wall_s, "scheduled_requests": asked}
    return json.dumps({**record, **change}) + "\n"


def test_a_servers_record_is_read() -> None:
    found = list(passes.read(RECORD))
    lines = RECORD.read_text().splitlines()
    assert passes.is_passes(lines[0])
    assert 20 <= len(found) <= len(lines)
    assert all(1 <= each.rows <= 64 for each in found)
    assert all(1.0 < each.step_ms < 1000.0 for each in found)
    assert all(each.kv_tokens >= each.rows for each in found)
    assert any(each.outside_ms > 0.0 for each in found)


def test_prefill_is_lost_to_those_who_waited(tmp_path: Path) -> None:
    path = tmp_path / "passes.jsonl"
    path.write_text(
        told(0, prefill=2, wall_s=0.5)  # nobody decoded before
        + told(2)
        + told(0, prefill=1, wall_s=0.03)
        + told(2, prefill=1, wall_s=0.04)  # mixed
        + told(4)
        + told(3)
        + told(9)[:-30]
    )
    found = list(passes.read(path))
    assert [each.rows for each in found] == [2, 4, 3]
    assert [each.outside_ms for each in found] == pytest.approx([0.0, 70.0, 0.0])
    assert [each.step_ms for each in found] == pytest.approx([10.0] * 3)
    assert [each.kv_tokens for each in found] == [200, 400, 300]


@pytest.mark.parametrize("line", [told(2, version=2), '{"lynx_log": 1}\n', "[1]\n"])
def test_what_is_no_record_of_this_version_is_refused(tmp_path: Path, line: str) -> None:
    path = tmp_path / "passes.jsonl"
    path.write_text(line)
    with pytest.raises(ValueError, match=r"passes\.jsonl"):
        list(passes.read(path))
