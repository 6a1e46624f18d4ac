"""Verification of a point: the server's own counts show that it ran as asked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lynx_sglang.evaluation.point import Point
from lynx_sglang.settings import Settings

KEPT = 1e-6  # of the mass: below it a loss is the rounding of sums
FIXED = ("override", "frozen")  # decisions that an operator's setting made, or that it left alone


def fault(point: Point, before: Mapping[str, Any], after: Mapping[str, Any]) -> str | None:
    """The reason to reject the steps between two readings of a server's ``lynx`` part, or None."""
    steps = after["decode_steps"] - before["decode_steps"]
    if steps < 1:
        return "no decode step ran"
    present = after["settings"]
    if point.fixed not in present:
        return f"the server has no setting {point.fixed}"
    for name, asked in point.knobs().items():
        if name in present and present[name] != asked:
            return f"the server ran with {name} {present[name]}, not {asked}: who changed it?"
    decided = {
        reason: count - before["decisions"].get(reason, 0)
        for reason, count in after["decisions"].items()
    }
    others = {reason: count for reason, count in decided.items() if count and reason not in FIXED}
    if others:
        return f"of {steps} steps, others than the setting decided {others}"
    return _cut_fault(point, before, after, steps)


def _cut_fault(
    point: Point, before: Mapping[str, Any], after: Mapping[str, Any], steps: int
) -> str | None:
    """The reason to reject the cut, by its mean T and mass; None if it is the point's."""
    active = (after["active_experts_sum"] - before["active_experts_sum"]) / steps
    lost = 1.0 - (after["retained_mass_sum"] - before["retained_mass_sum"]) / steps
    decision, num_experts = after["decision"], after["num_experts"]
    if point.demand != "auto":
        if decision["demand"] != point.demand:
            return f"the server ran demand {decision['demand']}"
        if float(point.demand) < 1.0 and lost <= KEPT:
            return f"nothing was cut: all mass was kept, T {active:.1f}, floor {_floor(after)}"
        return None
    if point.share != "auto":
        ran = decision["share"]
        return f"the server ran share {ran}" if abs(ran - float(point.share)) > KEPT else None
    if point.budget == "full":
        return f"full budget lost {lost:.2e} of the mass" if lost > KEPT else None
    cap = Settings(budget=point.budget).cap(num_experts)
    floor_hits = after["floor_hits"] - before["floor_hits"]
    if active > cap + KEPT and not floor_hits:
        return f"T was {active:.2f} above a cap of {cap}"
    return None


def _floor(part: Mapping[str, Any]) -> Any:
    return part["settings"]["floor"]
