"""The scorecard as a table, and the controller's pass or fail bars."""

from __future__ import annotations

from typing import Any

COLUMNS = (
    "first",
    "tokens",
    "requests",
    "windows",
    "mass",
    "on_time",
    "lead",
    "settling",
    "back",
    "overshoot",
    "reversals",
    "headroom",
    "regret",
    "leave",
    "attribution",
)
BASELINES = (
    "feed_forward",
    "batch_table",
    "pi",
    "brownout",
    "brownoutserve",
    "itl_only",
    "alone",
    "full",
)
BETTER = 0.002  # mass on time, paired by seed, below which two controllers are called equal


def cell(summary: dict[str, dict[str, float]], column: str) -> str:
    each = summary.get(column)
    if each is None:
        return ""
    digits = 3 if column in ("mass", "on_time", "lead") else 1
    return f"{each['p50']:.{digits}f} ({each['p90']:.{digits}f})"


def winners(results: dict[str, Any]) -> dict[str, list[str]]:
    """Per scenario, what delivered more mass on time than lynx, static demands included."""
    found = {}
    for name, by_policy in results.items():
        found[name] = [
            policy
            for policy, summary in by_policy.items()
            if policy in BASELINES or policy.startswith("static")
            if summary["lead"]["p50"] > BETTER
        ]
    return found


def bars(results: dict[str, Any]) -> dict[str, dict[str, Any]]:
    def value(scenario: str, figure: str, at: str = "p50") -> float:
        return float(results[scenario]["lynx"][figure][at])

    checks: dict[str, tuple[float, float]] = {}
    if "gain_error" in results:
        checks |= {
            "load step, gain 0.3-3x: settling, median steps": (value("gain_error", "settling"), 10),
            "the same, 90th percentile": (value("gain_error", "settling", "p90"), 25),
            "overshoot, %, 90th percentile": (value("gain_error", "overshoot", "p90"), 15),
            "back to full, steps, 90th percentile": (value("gain_error", "back", "p90"), 25),
        }
    if "constant" in results:
        checks["reversals per 1,000 steps, constant load, 90th percentile"] = (
            value("constant", "reversals", "p90"),
            2,
        )
    for name, by_policy in results.items():
        best = by_policy["best_static"]["tokens"]["p50"]
        if best <= 2.0:
            checks[f"violations where a static can: {name}, %"] = (value(name, "tokens"), 2.0)
        if "regret" in by_policy["lynx"] and best <= 2.0:
            checks[f"mass below the plateau's oracle: {name}, %"] = (value(name, "regret"), 2.0)
    found: dict[str, dict[str, Any]] = {
        name: {"measured": measured, "at most": bar, "met": measured <= bar}
        for name, (measured, bar) in checks.items()
    }
    for name, beaten_by in winners(results).items():
        found[f"best mass on time: {name}"] = {
            "measured": ", ".join(beaten_by) or "lynx",
            "met": not beaten_by,
        }
    return found


def report(record: dict[str, Any]) -> str:
    lines = [
        "# Scorecard of the controller",
        "",
        f"`{record['command']}`; {record['plant']}; {record['seeds']} seeds (5 where requests are "
        "served); median (90th percentile). `best_static` knows the future.",
        "",
        *(f"- {name}: {about}" for name, about in record["figures"].items()),
        "",
        "One decision at 48 layers: {p50:.0f} us (99th percentile {p99:.0f}); device syncs: "
        "none.".format(**record["decision_us"]),
    ]
    for scenario, by_policy in record["results"].items():
        columns = [c for c in COLUMNS if any(c in each for each in by_policy.values())]
        lines += ["", f"## {scenario}: {record['scenarios'][scenario]}", ""]
        lines += ["| controller | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
        for policy, summary in by_policy.items():
            cells = [cell(summary, column) for column in columns]
            lines.append(f"| {policy} | " + " | ".join(cells) + " |")
    lines += ["", "## Bars", "", "| | measured | at most | |", "|---|---|---|---|"]
    for name, each in record["bars"].items():
        measured = each["measured"]
        shown = measured if isinstance(measured, str) else f"{measured:.2f}"
        lines.append(
            f"| {name} | {shown} | {each.get('at most', '')} | {'met' if each['met'] else 'MISS'} |"
        )
    return "\n".join(lines)


def rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: rounded(each) for name, each in value.items()}
    return round(value, 4) if isinstance(value, float) else value
