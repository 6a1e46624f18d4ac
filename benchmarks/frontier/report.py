"""Tables and pictures of what run.py measured.

    python -m benchmarks.frontier.report

Reads benchmarks/results/cpu/frontier/*.jsonl; writes report.md beside them, and frontier.png and
frontier-details.png in docs/.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from numpy import exp

from benchmarks.frontier import pictures
from benchmarks.frontier.bootstrap import Row, draws_of, interval, log_kl_at, paired_loss
from benchmarks.frontier.curves import OURS, curves_of, is_ours, read, uncapped_of

ROOT = Path(__file__).parents[2]
TARGETS = (0.3, 0.5)


def reference_of(reached: Mapping[str, Any], base: str) -> Any:
    """Our curve there: with a floor where it reaches, else without."""
    for floor in (1, 0):
        if f"{base}, floor {floor}" in reached:
            return reached[f"{base}, floor {floor}"]
    return None


def span(value: tuple[float, float, float], digits: int = 2) -> str:
    return f"{value[0]:.{digits}g} [{value[1]:.{digits}g}, {value[2]:.{digits}g}]"


def frontier_table(rows: list[Row], num_rows: int, target: float) -> list[str]:
    """KL of every curve at a share of the uncapped union, and ours over it."""
    uncapped, curves = uncapped_of(rows, "test", num_rows), curves_of(rows, num_rows)
    if uncapped is None or not curves:
        return []
    problems = len(next(iter(curves.values()))[0]["kl_by_problem"])
    draws, active = draws_of(problems), target * uncapped
    found = {name: log_kl_at(curve, active, draws) for name, curve in curves.items()}
    reached = {name: logs for name, logs in found.items() if logs is not None}
    lines = [
        f"\n### M = {num_rows}, T = {target:.0%} of the uncapped union ({active:.1f} of "
        f"{uncapped:.1f})\n",
        "| policy | KL, 1e-4 nats [95 %] | lynx over it | layers | contributions | both |",
        "|---|---|---|---|---|---|",
    ]
    for name, logs in sorted(reached.items(), key=lambda item: float(item[1][0])):
        cells = [span(interval(exp(logs) * 1e4))]
        for base in OURS[:4]:
            ours = None if is_ours(name) else reference_of(reached, base)
            cells.append("" if ours is None else span(interval(exp(ours - logs))))
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    missing = [name for name in found if name not in reached]
    if missing:
        lines.append(f"\nNot measured there (no setting on both sides): {', '.join(missing)}.")
    return lines


def settings_table(rows: list[Row], num_rows: int) -> list[str]:
    lines = [
        f"\n### Every setting, M = {num_rows}\n",
        "| policy | budget | demand | floor | T | KL, 1e-4 | p95 | p99 | top-1 agrees | NLL |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, curve in curves_of(rows, num_rows).items():
        for row in sorted(curve, key=lambda each: float(each["T"])):
            cells = [name, row["budget"], row["demand"], row["floor"], f"{row['T']:.1f}"]
            cells += [f"{row[key] * 1e4:.2g}" for key in ("kl", "kl_p95", "kl_p99")]
            cells += [f"{row['agreement']:.3%}", f"{row['nll']:.5f}"]
            shown = ("" if cell is None else str(cell) for cell in cells)
            lines.append("| " + " | ".join(shown) + " |")
    return lines


def answers_table(rows: list[Row]) -> list[str]:
    answers = [row for row in rows if row["stage"] == "answers"]
    full = next((set(row["wrong"]) for row in answers if row["curve"] == "full"), None)
    if full is None:
        return []
    lines = [
        "\n### Free-running answers, M = 16\n",
        "| policy | budget | demand | floor | T | maths | code | points lost in both [95 %] |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in answers:
        count = row["math_n"] + row["code_n"]
        budget = row["budget"] if not isinstance(row["budget"], list) else "by layer"
        cells = [row["curve"], budget, row["demand"], row["floor"], f"{row['T']:.1f}"]
        cells += [f"{row[f'{task}_right'] / row[f'{task}_n']:.1%}" for task in ("math", "code")]
        loss = paired_loss(full, set(row["wrong"]), count)
        cells.append("" if row["curve"] == "full" else "{:.2f} [{:.2f}, {:.2f}]".format(*loss))
        shown = ("" if cell is None else str(cell) for cell in cells)
        lines.append("| " + " | ".join(shown) + " |")
    return lines


def ablation_table(rows: list[Row]) -> list[str]:
    chosen = [row for row in rows if row["stage"] == "ablation"]
    if not chosen:
        return []
    lines = [
        "\n### Forms of lynx, on validation problems\n",
        "| form | M | budget | demand | T | KL, 1e-4 | over lynx at the same budget [95 %] | p99 |",
        "|---|---|---|---|---|---|---|---|",
    ]
    draws = draws_of(len(chosen[0]["kl_by_problem"]))
    plain: dict[Any, list[Row]] = defaultdict(list)
    for row in chosen:
        if row["variant"] == "lynx":
            plain[row["M"]].append(row)
    for row in chosen:
        mine = log_kl_at([row, row | {"T": row["T"] + 1}], row["T"], draws)
        base = log_kl_at(plain[row["M"]], row["T"], draws)
        ratio = "" if base is None or mine is None else span(interval(exp(mine - base)))
        ratio = "" if row["variant"] == "lynx" else ratio
        budget = row["budget"] if not isinstance(row["budget"], list) else "by layer"
        cells = [row["variant"], row["M"], budget, row["demand"], f"{row['T']:.1f}"]
        cells += [f"{row['kl'] * 1e4:.2g}", ratio, f"{row['kl_p99'] * 1e4:.2g}"]
        shown = ("" if cell is None else str(cell) for cell in cells)
        lines.append("| " + " | ".join(shown) + " |")
    return lines


def sweep_table(rows: list[Row]) -> list[str]:
    chosen = [row for row in rows if row["stage"] == "sweep"]
    if not chosen:
        return []
    lines = [
        "\n### Unpublished constants, M = 16, on validation problems\n",
        "| policy | confidence | bin width | bins | least similarity | budget | floor | T | KL |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    names = ("name", "confidence", "bin_width", "num_bins", "min_similarity")
    for row in chosen:
        cells = [str(row["policy"][name]) for name in names]
        cells += [str(row["budget"] or ""), str(row["floor"])]
        lines.append("| " + " | ".join([*cells, f"{row['T']:.1f}", f"{row['kl']:.2g}"]) + " |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks/results/cpu/frontier")
    parser.add_argument("--pictures", type=Path, default=ROOT / "docs", help="folder of both")
    arguments = parser.parse_args()
    files = sorted(arguments.results.glob("*.jsonl"))
    if not files:
        parser.error(f"--results: expected *.jsonl in {arguments.results}, got none")
    text, models = ["# Quality frontier\n\nMade by `python -m benchmarks.frontier.report`."], []
    for file in files:
        about, rows = read(file)
        models.append((about["model"], rows))
        text.append(f"\n## {about['model']}\n\n" + ", ".join(f"{k} {v}" for k, v in about.items()))
        measured = sorted({row["M"] for row in rows if row["stage"] == "curves"})
        for num_rows in measured:
            for target in TARGETS:
                text += frontier_table(rows, num_rows, target)
        text += answers_table(rows) + ablation_table(rows) + sweep_table(rows)
        for num_rows in measured:
            text += settings_table(rows, num_rows)
    (arguments.results / "report.md").write_text("\n".join(text) + "\n", encoding="utf-8")
    pictures.draw_panel(models, arguments.pictures / "frontier.png")
    pictures.draw_details(models, arguments.pictures / "frontier-details.png")


if __name__ == "__main__":
    main()
