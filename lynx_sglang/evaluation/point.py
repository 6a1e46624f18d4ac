"""One setting of a server to measure, and the setting it had before."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lynx_sglang import settings
from lynx_sglang.errors import SettingError
from lynx_sglang.settings import Settings

ALIASES = {"none": 0.0, "full": -1.0}
AUTO = {"budget": 0.0, "demand": -1.0}
# What decides a cut: a point fixes all of them, so that no controller moves during a measurement.
KNOBS = ("slo_itl_ms", "slo_ttft_ms", "max_quality_loss", "budget", "demand")


@dataclass(frozen=True, slots=True)
class Point:
    """A fixed budget with full demand, or a fixed demand without a cap."""

    budget: int | str = "full"
    demand: float = 1.0

    @property
    def name(self) -> str:
        return f"budget {self.budget}" if self.demand == 1.0 else f"demand {self.demand:g}"

    def knobs(self) -> dict[str, Any]:
        return {
            "slo_itl_ms": None,
            "slo_ttft_ms": None,
            "max_quality_loss": None,
            "budget": self.budget,
            "demand": self.demand,
        }


def points_of(budgets: str, demands: str) -> list[Point]:
    """Points of two comma-separated lists.

    Raises:
        SettingError: an entry is no budget or demand; names the flag, its range and what it got.
    """
    asked = [word.strip() for word in budgets.split(",") if word.strip()]
    points = [
        Point(budget=fixed("budget", word, "--budgets", "full, a count or a share"))
        for word in asked
    ]
    asked = [word.strip() for word in demands.split(",") if word.strip()]
    points += [
        Point(demand=fixed("demand", word, "--demands", "a number in [0, 1]")) for word in asked
    ]
    return list(dict.fromkeys(points))


def fixed(name: str, word: str, flag: str, allowed: str) -> Any:
    value = settings.parse_value(name, word, flag)
    if value == "auto":
        raise SettingError(f"{flag}: expected {allowed}, got 'auto': nothing to hold still")
    return value


def update_of(knobs: Mapping[str, Any], num_experts: int) -> dict[str, float]:
    """``/set_internal_state`` keys and numbers of setting values.

    A share of the experts is sent as a count: the endpoint takes numbers alone.
    """
    return {f"lynx_{name}": number(name, value, num_experts) for name, value in knobs.items()}


def number(name: str, value: Any, num_experts: int) -> float:
    if value is None:
        return ALIASES["none"]
    if value == "auto":
        return AUTO[name]
    if value == "full":
        return ALIASES["full"]
    return Settings(budget=value).cap(num_experts) if name == "budget" else float(value)
