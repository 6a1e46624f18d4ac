"""One model on the frontier: the settings of every stage, each measured once."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.frontier.ablation import variants
from benchmarks.frontier.candidates import (
    ANSWER_SHARES,
    ANSWERED,
    DEMANDS,
    PUBLISHED,
    SHARES,
    SWEPT_SHARES,
    baselines,
    budget_of,
    constants,
)
from benchmarks.frontier.forced import Forced
from benchmarks.frontier.free import decode
from benchmarks.frontier.gate import Gate, Setting
from benchmarks.frontier.measure import measure
from benchmarks.frontier.results import Results, key_of
from benchmarks.frontier.sensitivity import (
    contributions,
    layer_budgets,
    layer_offsets,
    similarities,
)
from benchmarks.frontier.transcripts import encode, mixed, transcribe
from loadtests.progress import track
from lynx_kernels import POLICIES, Policy
from models.checkpoint import load
from models.tasks import is_correct

ROOT = Path(__file__).parents[2]
SEEDS = {"train": 31, "validation": 32, "test": 33}
REACH = 1.0  # experts
LEAST_KL = 1e-9  # nats


@dataclass
class Bench:
    """One model on this machine: its runs, and where their rows go."""

    folder: Path
    results: Results
    problems: int
    answers: int
    rows: tuple[int, ...]
    answered: tuple[str, ...] = ANSWERED

    def __post_init__(self) -> None:
        self.model, self.tokenizer = load(self.folder)
        self._forced: dict[str, Forced] = {}

    def forced(self, split: str) -> Forced:
        if split not in self._forced:
            cache = ROOT / "build/frontier"
            transcripts = transcribe(
                self.model, self.tokenizer, self.folder, split, self.problems, SEEDS[split], cache
            )
            self._forced = {split: Forced(self.model, transcripts)}  # one at a time: memory
        return self._forced[split]

    @cached_property
    def similarity(self) -> list[Tensor]:
        return similarities(self.forced("train"))

    @property
    def top_k(self) -> int:
        return self.model.shape.top_k

    def measure(self, stage: str, split: str, rows: int, setting: Setting, **about: Any) -> Any:
        """The row of a setting, from the file or measured now."""
        key = key_of(stage, split, rows, setting)
        if key not in self.results.rows:
            similarity = self.similarity if setting.policy.needs_similarity else None
            contribution = self.contribution if setting.is_weighing else None
            forced, began = self.forced(split), time.perf_counter()
            got = measure(forced, rows, setting, similarity, contribution)
            got["seconds"] = round(time.perf_counter() - began, 2)
            self.results.add(
                key, {"stage": stage, "split": split, **describe(setting), **about, **got}
            )
        return self.results.rows[key]

    def uncapped(self, split: str, rows: int) -> float:
        """T of the full model."""
        return float(self.measure("natural", split, rows, Setting(POLICIES["full"]))["T"])

    def calibrate(self) -> None:
        if ("offsets",) not in self.results.rows:
            found = layer_offsets(
                lambda budgets: float(
                    self.measure("calibrate", "train", 16, Setting(POLICIES["lynx"], budgets))["kl"]
                ),
                self.uncapped("train", 16),
                len(self.model.moe_layers()),
            )
            self.results.add(("offsets",), {"stage": "calibrate", "offsets": found})
        if ("contribution",) not in self.results.rows:
            rounded = [
                [round(value, 4) for value in layer.tolist()]
                for layer in contributions(self.forced("train"))
            ]
            self.results.add(("contribution",), {"stage": "calibrate", "contribution": rounded})

    @cached_property
    def contribution(self) -> list[Tensor]:
        self.calibrate()
        layers = self.results.rows[("contribution",)]["contribution"]
        return [torch.tensor(layer) for layer in layers]

    def offsets(self) -> list[float]:
        self.calibrate()
        return list(self.results.rows[("offsets",)]["offsets"])

    def sweep(self) -> None:
        """Every unpublished constant at M = 16."""
        uncapped = self.uncapped("validation", 16)
        settings = [
            setting
            for family in constants().values()
            for policy in family
            for setting in baselines(policy, min(self.top_k, 3), uncapped, SWEPT_SHARES)
        ]
        for setting in track(settings, "setting", named):
            self.measure("sweep", "validation", 16, setting)

    def best(self, name: str) -> Policy:
        """The variant whose worst regret over the sweep's settings is least, in log KL."""
        family = constants().get(name)
        if family is None:
            return POLICIES[name]
        uncapped = self.uncapped("validation", 16)
        curves = []
        for policy in family:
            settings = baselines(policy, min(self.top_k, 3), uncapped, SWEPT_SHARES)
            rows = [self.measure("sweep", "validation", 16, each) for each in settings]
            curves.append(sorted((row["T"], row["kl"]) for row in rows))
        return family[best_curve(curves)]

    def ablation(self) -> None:
        """Forms of our policy at M = 16, on validation problems."""
        uncapped = self.uncapped("validation", 16)
        forms = [*variants(uncapped, self.offsets())]
        for name, setting in track(forms, "variant", lambda form: form[0]):
            self.measure("ablation", "validation", 16, setting, variant=name)

    def ours(
        self, uncapped: float, shares: Mapping[int, tuple[float, ...]]
    ) -> Iterator[tuple[str, Setting]]:
        lynx, offsets = POLICIES["lynx"], self.offsets()
        for floor, each in shares.items():
            for share in each:
                by_layer = layer_budgets(offsets, share, uncapped)
                for name, budget in (("", budget_of(share, uncapped)), (", layers", by_layer)):
                    yield f"lynx{name}", Setting(lynx, budget, None, floor)
                    weighing = Setting(lynx, budget, None, floor, is_weighing=True)
                    yield f"lynx{name}, contributions", weighing

    def curves(self) -> None:
        """Every policy against T, on test problems."""
        uncapped = {rows: self.uncapped("test", rows) for rows in self.rows}
        points = [
            (rows, name, setting)
            for rows in self.rows
            for name, setting in self.ours(uncapped[rows], SHARES)
        ]
        for name in PUBLISHED:
            policy = self.best(name)
            points += [
                (rows, name, setting)
                for rows in self.rows
                for setting in baselines(policy, self.top_k, uncapped[rows])
            ]
        points += [
            (rows, "lynx, demand", Setting(POLICIES["lynx"], None, demand))
            for rows in self.rows
            for demand in DEMANDS
        ]
        for rows, name, setting in track(
            points, "point", lambda point: f"M {point[0]}, {point[1]}"
        ):
            self.measure("curves", "test", rows, setting, curve=name)

    def answer(self) -> None:
        """Free-running answers at M = 16."""
        uncapped = self.uncapped("test", 16)
        settings = [("full", Setting(POLICIES["full"]))]
        settings += [*self.ours(uncapped, ANSWER_SHARES)]
        for name in self.answered:
            chosen = baselines(self.best(name), 4, uncapped, ANSWER_SHARES)
            settings += [(name, each) for each in chosen]
        asked = mixed("test", self.answers, SEEDS["test"])
        prompts = encode(self.tokenizer, asked)
        for name, setting in track(settings, "setting", lambda each: each[0]):
            key = key_of("answers", "test", 16, setting)
            if key in self.results.rows:
                continue
            contribution = self.contribution if setting.is_weighing else None
            began, gate = time.perf_counter(), Gate(setting, contribution=contribution)
            decoded = decode(self.model, self.tokenizer, prompts, gate=gate, rows=16)
            right = [
                is_correct(problem, self.tokenizer.decode(ids))
                for problem, ids in zip(asked, decoded.answers, strict=True)
            ]
            row = {"stage": "answers", "split": "test", "curve": name, **describe(setting), "M": 16}
            for task in ("math", "code"):
                of_task = [ok for ok, p in zip(right, asked, strict=True) if p.task == task]
                row |= {f"{task}_n": len(of_task), f"{task}_right": sum(of_task)}
            row |= {"T": gate.mean_active(), "wrong": [i for i, ok in enumerate(right) if not ok]}
            row["seconds"] = round(time.perf_counter() - began, 1)
            self.results.add(key, row)


def best_curve(curves: list[list[tuple[float, float]]]) -> int:
    """Index of the curve with the least mean log KL, read at the same T as the first one's.

    A curve that does not come within REACH experts of such a T does not count.
    """

    def at(curve: list[tuple[float, float]], active: float) -> float:
        counts = [count for count, _ in curve]
        if not counts[0] - REACH <= active <= counts[-1] + REACH:
            return math.inf
        return float(np.interp(active, counts, [math.log(max(kl, LEAST_KL)) for _, kl in curve]))

    means = [sum(at(curve, active) for active, _ in curves[0]) for curve in curves]
    return means.index(min(means))


def named(setting: Setting) -> str:
    return setting.policy.name


def describe(setting: Setting) -> dict[str, Any]:
    policy = asdict(setting.policy)
    kept = ("name", "confidence", "bin_width", "num_bins", "min_similarity")
    return {
        "policy": {name: policy[name] for name in kept},
        "budget": setting.budget,
        "demand": setting.demand,
        "floor": setting.floor,
        "is_weighing": setting.is_weighing,
    }
