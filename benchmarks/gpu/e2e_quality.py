"""A Lynx server held against itself: its KL to the full model, by shadow passes of every step.

Under a cap that cuts nothing both passes are the same computation, and the KL is 0. At half of the
active experts it is not, with the weights of ``e2e_model.write_sensitive``.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from benchmarks.gpu.e2e_client import Load, change, measure
from benchmarks.gpu.e2e_model import Shape
from loadtests.server import Server

# Mean KL, nats per token: at most, where nothing is cut; at least, at half of the active experts.
UNCUT_KL, CUT_KL = 1e-6, 1e-3
SHADOW_GAPS = 16  # timed in a round


def compared(server: Server, shape: Shape, load: Load, rows: int) -> Iterator[dict[str, Any]]:
    """Rows with the KL to the full model, by shadow passes of every capped step."""
    few = Load(load.vocab_size, SHADOW_GAPS, rounds=1)
    change(server, budget=-1, demand=1.0, slo_itl_ms=0)
    active = measure(server, few, rows).active_experts or 0.0
    for setting, budget in (("uncut", shape.num_experts - 1), ("half", round(active / 2))):
        change(server, budget=budget, shadow_share=1.0)
        before = shadow_of(server)
        row = {"router": "sensitive", "side": "lynx", "setting": setting, "budget": budget}
        row |= measure(server, few, rows).row(rows)
        kl_rows, kl_sum = (b - a for a, b in zip(before, shadow_of(server), strict=True))
        yield row | {"kl_rows": kl_rows, "kl": kl_sum / kl_rows if kl_rows else None}
    change(server, budget=-1, shadow_share=-1)


def shadow_of(server: Server) -> tuple[int, float]:
    """Rows that shadow passes have compared, and the sum of their KL."""
    part = server.lynx()
    if part is None:
        raise RuntimeError("the server runs without Lynx")
    return part["shadow"]["rows"], part["shadow"]["kl_sum"]


def fault_of(row: dict[str, Any]) -> str | None:
    """A KL that a row should not have; None for rows without one."""
    if "kl_rows" not in row:
        return None
    name = f"batch {row['batch']}, cap {row['budget']} ({row['setting']})"
    kl, is_cut = row["kl"], row["setting"] == "half"
    if kl is None:
        return f"{name}: no step was shadowed"
    if is_cut and kl < CUT_KL:
        return f"{name}: KL {kl:.2g} nats a token, expected at least {CUT_KL:g}"
    if not is_cut and kl > UNCUT_KL:
        return f"{name}: KL {kl:.2g} nats a token, expected at most {UNCUT_KL:g}"
    return None
