"""Data of a decision and a step, to a device and back; CPU tensors stand in."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from lynx_controller import Decision
from lynx_controller.types import Reason
from lynx_kernels import RowClass
from lynx_sglang.gpu.counters import Counters
from lynx_sglang.loop.buffer import IN_FLIGHT, Buffer

PAD, EXACT, FLEXIBLE = RowClass.PAD, RowClass.EXACT, RowClass.FLEXIBLE
LAYERS, E = [3, 5, 9], 32
DECISION = Decision(
    budget=(8, 9, 10),
    demand=0.75,
    expected_active=(8.0, 9.0, 10.0),
    reason=Reason.FEED_FORWARD,
    saturated=False,
    predicted_ms=1.0,
)


def classes(*rows: int) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.uint8)


def test_on_a_cpu_a_decision_is_in_force_when_it_is_written() -> None:
    buffer = Buffer(LAYERS, E, floor=2)
    assert [int(cap) for cap in buffer.caps.values()] == [E] * 3
    buffer.write(DECISION, E)
    assert {layer: int(cap) for layer, cap in buffer.caps.items()} == {3: 8, 5: 9, 9: 10}
    assert (float(buffer.demand), int(buffer.floor), buffer.is_full) == (0.75, 2, False)
    buffer.set_floor(3)
    assert int(buffer.floor) == 3
    buffer.write(replace(DECISION, demand=1.0, budget=(E,) * 3), E)
    assert buffer.is_full


def test_on_a_device_it_waits_for_the_step_that_it_is_for() -> None:
    buffer = Buffer(LAYERS, E, floor=1, max_rows=8)
    addresses = [tensor.data_ptr() for tensor in (*buffer.caps.values(), buffer.demand)]
    assert buffer.row_class.tolist() == [EXACT] * 8  # whatever runs unannounced is left alone
    buffer.write(DECISION, E)
    buffer.set_floor(2)
    assert (int(buffer.caps[3]), float(buffer.demand), int(buffer.floor)) == (E, 1.0, 1)
    buffer.send(classes(FLEXIBLE, EXACT), lane=0)
    assert (int(buffer.caps[3]), float(buffer.demand), int(buffer.floor)) == (8, 0.75, 2)
    assert [tensor.data_ptr() for tensor in (*buffer.caps.values(), buffer.demand)] == addresses


def test_rows_above_a_batch_are_padding_after_a_larger_one() -> None:
    buffer = Buffer(LAYERS, E, floor=1, max_rows=6)
    for lane, rows in enumerate([5, 2, 1, 6]):
        buffer.send(classes(*[FLEXIBLE] * rows), lane % IN_FLIGHT)
        assert buffer.row_class.tolist() == [FLEXIBLE] * rows + [PAD] * (6 - rows)


def test_a_step_in_flight_runs_uncapped_and_then_as_it_was_sent() -> None:
    buffer = Buffer(LAYERS, E, floor=1, max_rows=6)
    buffer.write(DECISION, E)
    buffer.set_floor(2)
    buffer.send(classes(FLEXIBLE, EXACT), lane=3)
    buffer.write(replace(DECISION, budget=(4,) * 3, demand=0.5), E)  # for a later step
    address = buffer.caps[5].data_ptr()
    with buffer.uncapped(lane=3):
        assert ({int(cap) for cap in buffer.caps.values()}, float(buffer.demand)) == ({E}, 1.0)
        assert buffer.row_class.tolist() == [FLEXIBLE, EXACT] + [PAD] * 4
        assert buffer.caps[5].data_ptr() == address
    assert [int(cap) for cap in buffer.caps.values()] == [8, 9, 10]
    assert (float(buffer.demand), int(buffer.floor)) == (0.75, 2)
    assert buffer.row_class.tolist() == [FLEXIBLE, EXACT] + [PAD] * 4
    buffer.send(classes(FLEXIBLE), lane=0)
    assert [int(cap) for cap in buffer.caps.values()] == [4, 4, 4]


def test_a_step_of_exact_rows_alone_has_no_cap_and_leaves_the_next_ones_in_force() -> None:
    buffer = Buffer(LAYERS, E, floor=1, max_rows=6)
    buffer.write(DECISION, E)
    buffer.send(classes(FLEXIBLE), lane=0)
    buffer.send_exact(lane=1)
    assert buffer.row_class.tolist() == [EXACT] * 6
    assert ({int(cap) for cap in buffer.caps.values()}, float(buffer.demand)) == ({E}, 1.0)
    buffer.send(classes(FLEXIBLE), lane=1)
    assert buffer.row_class.tolist() == [FLEXIBLE] + [PAD] * 5
    assert (int(buffer.caps[3]), float(buffer.demand)) == (8, 0.75)


def test_counters_of_steps_in_flight_do_not_mix() -> None:
    num_active, retained = torch.tensor([4, 6], dtype=torch.int32), torch.ones(2, 5)
    counters = Counters(num_active, retained)
    counters.read(0, slice(0, 2))
    num_active += 1
    retained[:, 1] = 0.5
    counters.read(1, slice(0, 3))
    num_active.zero_()
    for lane in (0, 1):
        counters.wait(lane)
    first, second = counters.of(0), counters.of(1)
    assert (first[0].tolist(), first[1].tolist()) == ([4, 6], [[1.0, 1.0]] * 2)
    assert (second[0].tolist(), second[1].tolist()) == ([5, 7], [[1.0, 0.5, 1.0]] * 2)


@pytest.mark.parametrize("rows", [0, 5])
def test_counters_of_no_row_and_of_every_row(rows: int) -> None:
    counters = Counters(torch.zeros(2, dtype=torch.int32), torch.ones(2, 5))
    counters.read(0, slice(0, rows))
    assert counters.of(0)[1].shape == (2, rows)


def test_counters_of_the_rows_that_decode_in_a_mixed_step() -> None:
    retained = torch.arange(10.0).view(2, 5)
    counters = Counters(torch.zeros(2, dtype=torch.int32), retained)
    counters.read(0, slice(2, 4))
    assert counters.of(0)[1].tolist() == [[2.0, 3.0], [7.0, 8.0]]
