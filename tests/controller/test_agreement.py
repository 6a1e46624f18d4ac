"""Two ranks hold the same budget at the same step: rank 0 decides, the decision goes to all.

A controller sees its own rank's clock, so two ranks that decided for themselves would part. The
extension refuses more than one rank for now; this is the protocol that it is to use.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from multiprocessing.queues import Queue
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from lynx_controller import Controller, Decision, Observation, Slo
from lynx_controller.simulator import Load, Plant, Setting, simulate

STEPS = 60
Held = list[tuple[float, tuple[int, ...]]]


def hold(rank: int, decide: Callable[[Observation], Decision]) -> Held:
    """What a rank holds, step by step: its own noise (seed), the same loads as all."""
    held: Held = []

    def step(seen: Observation) -> Setting:
        decision = decide(seen)
        held.append((decision.demand, decision.budget))
        return held[-1]

    loads = [Load(4 if number < 20 else 16) for number in range(STEPS)]
    simulate(Plant(seed=rank), step, loads)
    return held


def make() -> Controller:
    return Controller(Slo(itl_ms=13.0), 8, 64, 4)


def rank_main(rank: int, file: str, found: Queue[tuple[int, Held]]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=2)
    controller = make() if rank == 0 else None

    def led(seen: Observation) -> Decision:
        box = [None if controller is None else controller.step(seen).to_dict()]
        dist.broadcast_object_list(box, src=0)
        assert box[0] is not None
        return Decision.from_dict(box[0])

    found.put((rank, hold(rank, led)))
    dist.barrier()
    dist.destroy_process_group()


@pytest.mark.timeout(300)
def test_ranks_agree_where_one_decides(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    found: Queue[tuple[int, Held]] = context.Queue()
    file = str(tmp_path / "ranks")
    ranks = [context.Process(target=rank_main, args=(i, file, found)) for i in range(2)]
    for each in ranks:
        each.start()
    held = dict(found.get(timeout=200) for _ in ranks)
    for each in ranks:
        each.join(60)
        assert each.exitcode == 0
    assert held[0] == held[1]
    assert len(held[0]) == STEPS
    assert min(demand for demand, _ in held[0]) < 0.95


def test_ranks_that_decide_for_themselves_part() -> None:
    assert hold(0, make().step) != hold(1, make().step)
