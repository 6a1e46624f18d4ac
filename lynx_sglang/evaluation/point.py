"""One setting of a server to measure, and the setting it had before."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from lynx_sglang import settings
from lynx_sglang.errors import SettingError
from lynx_sglang.loop import changes

# Settings that decide a cut: a point fixes all, so that no controller moves while it measures.
KNOBS = (
    *("slo_itl_ms", "slo_tpot_ms", "slo_ttft_ms"),
    *("max_quality_loss", "budget", "demand", "share"),
)


@dataclass(frozen=True, slots=True)
class Point:
    """One thing fixed: a share of what a step would use, split over the layers as under an SLO; a
    budget, the same for every layer; or a demand without a cap.
    """

    budget: int | str = "auto"
    demand: float | str = "auto"
    share: float | str = "auto"

    @property
    def name(self) -> str:
        name = self.fixed
        return f"share {100 * float(self.share):g}%" if name == "share" else f"{name} {self.value}"

    @property
    def fixed(self) -> str:
        """The setting that the point fixes."""
        (name,) = (name for name, value in asdict(self).items() if value != "auto")
        return name

    @property
    def value(self) -> Any:
        return getattr(self, self.fixed)

    def knobs(self) -> dict[str, Any]:
        return {**dict.fromkeys(KNOBS), **asdict(self)}


# By flag of `eval`: the setting, and what an entry may be. Full budget comes first by default: from
# it the server learns the uncapped number that a share is of.
LISTS = {
    "--budgets": ("budget", "full, a count or a share of all experts"),
    "--shares": ("share", "a share in (0%, 100%]"),
    "--demands": ("demand", "a number in [0, 1]"),
}


def points_of(**lists: str) -> list[Point]:
    """Points of comma-separated lists, by the flags' names.

    Raises:
        SettingError: an entry fixes nothing; names the flag, its range and what it got.
    """
    points = []
    for flag, (name, allowed) in LISTS.items():
        words = (word.strip() for word in lists.get(flag.removeprefix("--"), "").split(","))
        points += [Point(**{name: fixed(name, word, flag, allowed)}) for word in words if word]
    return list(dict.fromkeys(points))


def fixed(name: str, word: str, flag: str, allowed: str) -> Any:
    value = settings.parse_value(name, word, flag)
    if value == "auto":
        raise SettingError(f"{flag}: expected {allowed}, got 'auto': nothing to hold still")
    return value


def update_of(knobs: Mapping[str, Any]) -> dict[str, float | str]:
    """``/set_internal_state`` entries of setting values."""
    return {
        changes.PREFIX + name: value
        if isinstance(value, str) and value.endswith("%")
        else changes.wire_number(name, value)
        for name, value in knobs.items()
    }
