"""A drawing of one layer's selection: the rows are an example, the outcome is ``select``'s."""

from __future__ import annotations

import torch

from lynx_kernels import RowClass, Selection, select_reference

BUDGET = 6
TOP_K = 3
ROWS = (("row A", RowClass.FLEXIBLE), ("row B", RowClass.FLEXIBLE), ("row C", RowClass.EXACT),
        ("row D", RowClass.FLEXIBLE))  # fmt: skip
SCORES = (
    (0.50, 0.25, 0.10, 0.05, 0.03, 0.02, 0.02, 0.01, 0.01, 0.01),
    (0.40, 0.03, 0.02, 0.30, 0.12, 0.02, 0.01, 0.08, 0.01, 0.01),
    (0.04, 0.25, 0.03, 0.04, 0.02, 0.45, 0.10, 0.03, 0.02, 0.02),
    (0.14, 0.05, 0.02, 0.38, 0.03, 0.02, 0.03, 0.28, 0.03, 0.02),
)
CELL, ROW, LEFT = 33, 30, 84


def draw() -> str:
    """The drawing as SVG."""
    scores = torch.tensor(SCORES)
    mass, ids = scores.topk(TOP_K, dim=-1)
    weights = mass / mass.sum(-1, keepdim=True)
    classes = torch.tensor([int(row_class) for _, row_class in ROWS], dtype=torch.uint8)
    chosen = select_reference(
        scores,
        ids,
        weights,
        classes,
        budget=torch.tensor(BUDGET, dtype=torch.int32),
        floor=torch.tensor(1, dtype=torch.int32),
        demand=torch.tensor(1.0),
    )
    own = cells(ids, weights)
    used = len({expert for _, expert in own})
    after = cells(chosen.topk_ids, chosen.topk_weights)
    half = ROW * len(ROWS) + 54
    parts = [
        f'<svg viewBox="0 0 430 {2 * half}" role="img" aria-label="{spoken(used, chosen)}">',
        grid(20, f"Top-{TOP_K} of the router: {used} experts to read", own, {}, own),
        grid(
            half + 20,
            f"After select, budget {BUDGET}: {int(chosen.num_active)} experts to read",
            own,
            own,
            after,
        ),
        "</svg>",
    ]
    return "\n".join(parts)


def cells(ids: torch.Tensor, weights: torch.Tensor) -> dict[tuple[int, int], float]:
    """Weights by row and expert."""
    return {
        (row, expert): weight
        for row, (row_ids, row_weights) in enumerate(
            zip(ids.tolist(), weights.tolist(), strict=True)
        )
        for expert, weight in zip(row_ids, row_weights, strict=True)
        if expert >= 0
    }


def grid(
    top: int,
    title: str,
    own: dict[tuple[int, int], float],
    before: dict[tuple[int, int], float],
    now: dict[tuple[int, int], float],
) -> str:
    """Rows by experts: kept, lost and new ones."""
    parts = [f'<text class="title" x="4" y="{top}">{title}</text>']
    active = {expert for _, expert in now}
    for expert in range(len(SCORES[0])):
        kind = "head" if expert in active else "head idle"
        x = LEFT + CELL * expert + CELL / 2
        parts.append(f'<text class="{kind}" x="{x}" y="{top + 24}">e{expert}</text>')
    for row, (name, row_class) in enumerate(ROWS):
        y = top + 32 + ROW * row
        tier = row_class.name.lower()
        parts.append(f'<text x="4" y="{y + 14}">{name}</text>')
        parts.append(f'<text class="small" x="4" y="{y + 26}">{tier}</text>')
        for expert in range(len(SCORES[0])):
            place = (row, expert)
            kind = "cell"
            if place in now:
                kind += " own" if place in own else " new"
            elif place in before:
                kind += " lost"
            x = LEFT + CELL * expert
            parts.append(
                f'<rect class="{kind}" x="{x + 1}" y="{y}" width="{CELL - 2}" height="{ROW - 4}"/>'
            )
            if place in now:
                parts.append(
                    f'<text class="value" x="{x + CELL / 2}" y="{y + 17}">{now[place]:.2f}</text>'
                )
    return "\n".join(parts)


def spoken(used: int, chosen: Selection) -> str:
    return (
        f"Four rows and ten experts: the rows' own top {TOP_K} touch {used} experts, after "
        f"selection with a budget of {BUDGET} they touch {int(chosen.num_active)}. The exact row "
        "keeps its experts; flexible rows that lose one take another active expert."
    )
