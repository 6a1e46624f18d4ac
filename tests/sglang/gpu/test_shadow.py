"""Two passes of one step and their comparison; CPU tensors stand in for a device's."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lynx_controller import Batch
from lynx_kernels import RowClass
from lynx_sglang.gpu import shadow
from lynx_sglang.gpu.shadow import MAX_COMPARED_ROWS, ROWS_AT_ONCE, Shadows, spread
from lynx_sglang.loop.buffer import IN_FLIGHT, Buffer
from lynx_sglang.loop.shadow import compare
from lynx_sglang.loop.step import Step

pytestmark = pytest.mark.usefixtures("timed_events")
LAYERS, E, V = [3, 5], 16, 50
EXACT, FLEXIBLE = RowClass.EXACT, RowClass.FLEXIBLE


def step_of(classes: list[int]) -> Step:
    return Step(
        number=1,
        batch=Batch.of(len(classes)),
        row_class=torch.tensor(classes, dtype=torch.uint8),
        requests=[],
        first_decode_row=0,
        kv_tokens=0,
    )


class Graph:
    """Writes its logits to one place, as a captured graph does; a cap moves them."""

    def __init__(self, buffer: Buffer, rows: int, dtype: torch.dtype = torch.float32) -> None:
        self.buffer, self.logits = buffer, torch.empty(rows, V, dtype=dtype)
        self.seen: list[tuple[list[int], float]] = []
        self.launched: list[torch.Tensor] = []

    def __call__(self) -> Any:
        caps = [int(cap) for cap in self.buffer.caps.values()]
        self.seen.append((caps, float(self.buffer.demand)))
        rng = torch.Generator().manual_seed(len(self.logits))
        logits = torch.randn(self.logits.shape, generator=rng)
        self.logits.copy_(logits * (1.0 + 0.1 * (E - caps[0])))
        self.launched.append(self.logits.float().log_softmax(-1))
        return SimpleNamespace(logits_output=SimpleNamespace(next_token_logits=self.logits))


def sent(step: Step, budget: int, lane: int, buffer: Buffer | None = None) -> Buffer:
    buffer = buffer or Buffer(LAYERS, E, floor=1, max_rows=1024)
    decision: Any = SimpleNamespace(budget=(budget,) * len(LAYERS), demand=0.5)
    buffer.write(decision, E)
    buffer.send(step.row_class, lane)
    return buffer


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [1, ROWS_AT_ONCE, ROWS_AT_ONCE + 1, 3 * ROWS_AT_ONCE - 5])
def test_the_full_pass_comes_first_and_flexible_rows_are_compared(
    rows: int, dtype: torch.dtype
) -> None:
    step = step_of([EXACT, *[FLEXIBLE] * rows])
    buffer = sent(step, 9, lane=2)
    graph = Graph(buffer, rows + 1, dtype)
    shadows = Shadows(torch.device("cpu"))
    output = shadows.run(step, 2, buffer, graph)
    assert graph.seen == [([E, E], 1.0), ([9, 9], 0.5)]
    assert output.logits_output.next_token_logits is graph.logits
    found, added_ms = shadows.land(2)
    expected = compare(*(logs[1:] for logs in graph.launched))
    assert found.kl == pytest.approx(expected.kl, rel=1e-6)
    assert found.agrees == expected.agrees
    assert min(found.kl) > 0.0
    assert added_ms > 0.0


def test_a_cap_that_changes_nothing_loses_nothing() -> None:
    step = step_of([FLEXIBLE] * 3)
    buffer = sent(step, E, lane=0)
    shadows = Shadows(torch.device("cpu"))
    shadows.run(step, 0, buffer, Graph(buffer, 3))
    found, _ = shadows.land(0)
    assert (found.kl, found.agrees) == ([0.0] * 3, [True] * 3)


def test_steps_in_flight_do_not_mix() -> None:
    shadows, losses, buffer = Shadows(torch.device("cpu")), [], None
    for lane in range(IN_FLIGHT):
        step = step_of([FLEXIBLE] * (IN_FLIGHT - lane))
        buffer = sent(step, E - lane, lane, buffer)
        shadows.run(step, lane, buffer, Graph(buffer, IN_FLIGHT - lane))
    for lane in range(IN_FLIGHT):
        found, _ = shadows.land(lane)
        assert len(found.kl) == IN_FLIGHT - lane
        losses.append(found.mean_kl)
    assert losses == sorted(losses)
    assert losses[0] == 0.0 < losses[1]


@pytest.mark.parametrize("rows", [1, MAX_COMPARED_ROWS, MAX_COMPARED_ROWS + 1, 1000])
def test_a_bounded_number_of_rows_is_compared_from_all_over_the_batch(rows: int) -> None:
    chosen = spread(torch.arange(rows))
    assert len(chosen) <= MAX_COMPARED_ROWS
    assert len(chosen) >= min(rows, MAX_COMPARED_ROWS // 2)
    gaps = set(chosen.diff().tolist())
    assert len(gaps) <= 1
    assert rows - int(chosen[-1]) <= math.ceil(rows / MAX_COMPARED_ROWS)


def test_a_large_steps_comparison_is_of_the_rows_that_were_taken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(shadow, "MAX_COMPARED_ROWS", 4)
    step = step_of([EXACT, FLEXIBLE] * 5)
    buffer = sent(step, 9, lane=1)
    graph = Graph(buffer, 10)
    shadows = Shadows(torch.device("cpu"))
    shadows.run(step, 1, buffer, graph)
    expected = compare(*(logs[[1, 5, 9]] for logs in graph.launched))
    assert shadows.land(1)[0].kl == pytest.approx(expected.kl, rel=1e-6)
