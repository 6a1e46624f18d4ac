"""The report of a measurement: figures of each leg, from its rows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from lynx_sglang.evaluation.journal import Journal
from lynx_sglang.evaluation.session import Leg, Plan

RESAMPLES, SEED = 1000, 0
Z_95 = 1.96

COLUMNS = (
    # title, key, format
    ("T", "active_experts", "{:.1f}"),
    ("mass", "retained_mass", "{:.3f}"),
    ("KL, nats", "kl", "{:.2e}"),
    ("KL p99", "kl_p99", "{:.1e}"),
    ("top-1", "agreement", "{:.2%}"),
    ("NLL+", "nll_excess", "{:+.1e}"),
    ("differ", "differing", "{:.0%}"),
    ("first at", "first_difference", "{:.0f}"),
    ("step KL", "shadow_kl", "{:.2e}"),
    ("step top-1", "shadow_agreement", "{:.2%}"),
)


def report(plan: Plan, journal: Journal, manifest: dict[str, Any]) -> dict[str, Any]:
    """JSON: the measurement, and a summary of each leg."""
    return {**manifest, "legs": [summary(leg, journal) for leg in plan.legs()]}


def summary(leg: Leg, journal: Journal) -> dict[str, Any]:
    """One leg: accuracy by set, T, retained mass, and distances to the full model.

    kl, nll_full, nll_served: nats per decoded token. nll_excess: NLL of the served answer under
    the full model, less its NLL as it was decoded.
    """
    rows = [row for row in journal.rows if leg.key.items() <= row.items()]
    answers = [row for row in rows if row["kind"] == "answer"]
    windows = [row for row in rows if row["kind"] == "window"]
    steps = sum(row["decode_steps"] for row in windows)
    decoded = sum(len(row["kl"]) for row in answers)
    tokens = np.concatenate([row["kl"] for row in answers]) if decoded else np.zeros(0)
    kept = share(sum(row["retained_mass_sum"] for row in windows), steps)
    shadow_rows = sum(row["shadow"]["rows"] for row in windows)
    return {
        **leg.key,
        "answers": len(answers),
        "unfinished": sum(not row["finished"] for row in answers),
        "accuracy": {name: accuracy(answers, name) for name in sets(answers)},
        "decode_steps": steps,
        "decoded_tokens": decoded,
        "active_experts": share(sum(row["active_experts_sum"] for row in windows), steps),
        # Windows are differences of running sums: what is below is their rounding.
        "retained_mass": None if kept is None else round(kept, 9),
        "kl": share(float(tokens.sum()), decoded),
        "kl_interval_95": mean_interval([row["kl"] for row in answers if row["kl"]]),
        "kl_p99": float(np.percentile(tokens, 99)) if decoded else None,
        "agreement": share(sum(row["agreements"] for row in answers), decoded),
        "nll_full": share(sum(row["nll_full"] for row in answers), decoded),
        "nll_served": share(sum(row["nll_served"] for row in answers), decoded),
        "nll_excess": share(sum(row["nll_full"] - row["nll_served"] for row in answers), decoded),
        **variation(leg, answers, journal),
        "shadow_rows": shadow_rows,
        "shadow_kl": share(sum(row["shadow"]["kl_sum"] for row in windows), shadow_rows),
        "shadow_agreement": share(sum(row["shadow"]["agreements"] for row in windows), shadow_rows),
    }


def share(total: float, count: float) -> float | None:
    return total / count if count else None


def sets(answers: Sequence[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(row["problem"].partition("/")[0] for row in answers))


def accuracy(answers: Sequence[dict[str, Any]], name: str) -> dict[str, Any]:
    """Share of right answers in a set, with Wilson's 95 % interval."""
    verdicts = [row["correct"] for row in answers if row["problem"].partition("/")[0] == name]
    count, right = len(verdicts), sum(verdicts)
    part = right / count
    centre = part + Z_95**2 / (2 * count)
    spread = Z_95 * math.sqrt(part * (1 - part) / count + Z_95**2 / (4 * count**2))
    scale = 1 + Z_95**2 / count
    return {
        "answers": count,
        "share": part,
        "interval_95": [max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale)],
    }


def mean_interval(groups: Sequence[Sequence[float]]) -> list[float] | None:
    """95 % bootstrap interval of the mean over all tokens; whole answers are drawn again."""
    if len(groups) < 2:
        return None
    sums = np.array([sum(group) for group in groups])
    counts = np.array([len(group) for group in groups])
    drawn = np.random.default_rng(SEED).integers(len(groups), size=(RESAMPLES, len(groups)))
    means = sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
    low, high = np.percentile(means, [2.5, 97.5])
    return [float(low), float(high)]


def variation(
    leg: Leg, answers: Sequence[dict[str, Any]], journal: Journal
) -> dict[str, float | int | None]:
    """Noisy neighbours: answers in a batch against the same requests' alone, same setting."""
    alone = {
        row["problem"]: row["tokens"]
        for row in journal.rows
        if row["kind"] == "answer" and row["point"] == leg.point.name and row["concurrency"] == 1
    }
    pairs = [(row["tokens"], alone[row["problem"]]) for row in answers if row["problem"] in alone]
    if leg.concurrency == 1 or not pairs:
        return {"compared": 0, "differing": None, "first_difference": None}
    firsts = [first_difference(ours, theirs) for ours, theirs in pairs if ours != theirs]
    return {
        "compared": len(pairs),
        "differing": len(firsts) / len(pairs),
        "first_difference": float(np.median(firsts)) if firsts else None,
    }


def first_difference(one: Sequence[int], other: Sequence[int]) -> int:
    """Index of the first token that differs, or where the shorter one ends."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(one), len(other)))


def table(report: dict[str, Any]) -> str:
    """The report's legs as text; columns that were not measured are left out."""
    legs = report["legs"]
    names = list(dict.fromkeys(name for leg in legs for name in leg["accuracy"]))
    columns = [column for column in COLUMNS if any(leg[column[1]] is not None for leg in legs)]
    lines = [["setting", "streams", *names, *(title for title, *_ in columns)]]
    for leg in legs:
        right = [leg["accuracy"].get(name) for name in names]
        cells = [leg["point"], str(leg["concurrency"])]
        cells += ["" if one is None else f"{one['share']:.1%}" for one in right]
        cells += [
            "" if leg[key] is None else shape.format(leg[key]) for _title, key, shape in columns
        ]
        lines.append(cells)
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return "\n".join(
        "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True))
        for line in lines
    )
