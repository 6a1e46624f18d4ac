"""One measurement: every point at every concurrency, resumable, and the server left as it was."""

from __future__ import annotations

import asyncio
import hashlib
import importlib.metadata
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from lynx_sglang.evaluation.divergence import divergence
from lynx_sglang.evaluation.journal import Journal
from lynx_sglang.evaluation.point import Point
from lynx_sglang.evaluation.problems import Problem
from lynx_sglang.evaluation.server import EvaluationError, Server
from lynx_sglang.evaluation.verification import fault

ROWS, RESTORE = "rows.jsonl", "restore.json"
# Sums in /server_info over decoding steps: differences are a window's.
SUMS = ("decode_steps", "active_experts_sum", "retained_mass_sum")
SHADOW_SUMS = ("steps", "rows", "kl_sum", "agreements")


@dataclass(frozen=True, slots=True)
class Plan:
    """A measurement's plan. ``alone``: problems of each set that are also asked one at a time."""

    points: tuple[Point, ...]
    concurrency: tuple[int, ...]
    problems: tuple[Problem, ...]
    max_tokens: int
    alone: int

    def legs(self) -> list[Leg]:
        few = tuple(problem for problem in self.problems if problem.index < self.alone)
        legs = []
        for point in self.points:
            if few and 1 not in self.concurrency:
                legs.append(Leg(point, 1, few))
            legs += [Leg(point, streams, self.problems) for streams in self.concurrency]
        return legs


@dataclass(frozen=True, slots=True)
class Leg:
    """One point at one concurrency."""

    point: Point
    concurrency: int
    problems: tuple[Problem, ...]

    @property
    def title(self) -> str:
        return f"{self.point.name}, {self.concurrency} at a time"

    @property
    def key(self) -> dict[str, Any]:
        return {"point": self.point.name, "concurrency": self.concurrency}

    def left(self, journal: Journal) -> tuple[Problem, ...]:
        """Problems that the journal has no answer to."""
        done = {
            row["problem"]
            for row in journal.rows
            if row["kind"] == "answer" and self.key.items() <= row.items()
        }
        return tuple(problem for problem in self.problems if problem.name not in done)


async def measure(server: Server, plan: Plan, out: Path, tokenizer: Any) -> Journal:
    """Run what is left of ``plan``; its rows are in ``out``.

    Cancelling it leaves the rows so far and the server's settings as they were before.
    """
    info = await server.info()
    journal = Journal(out / ROWS, manifest(plan, info))
    legs = [leg for leg in plan.legs() if leg.left(journal)]
    if not legs:
        return journal
    restore = out / RESTORE
    if not restore.exists():  # else an earlier run was killed before it could restore
        restore.write_text(json.dumps(await server.knobs()))
    try:
        with progress(plan, journal) as bar:
            for number, leg in enumerate(legs, start=1):
                left = leg.left(journal)
                after = f"then {legs[number].title}" if number < len(legs) else "the last"
                bar.set_description(leg.title)
                bar.write(f"{number} of {len(legs)}: {leg.title}, {len(left)} answers; {after}")
                await server.set(leg.point.knobs())
                seen = await run(server, replace(leg, problems=left), plan, journal, tokenizer, bar)
                steps = seen["decode_steps"]
                bar.write(
                    f"  T {seen['active_experts_sum'] / steps:.1f}, "
                    f"mass {seen['retained_mass_sum'] / steps:.4f} over {steps} steps"
                )
    finally:
        await server.set(json.loads(restore.read_text()))
        restore.unlink()
    return journal


async def run(
    server: Server, leg: Leg, plan: Plan, journal: Journal, tokenizer: Any, bar: tqdm[Any]
) -> dict[str, Any]:
    """Answer a leg's problems, ``concurrency`` at a time, and score each answer as it ends.

    Returns what the server counted meanwhile, as ``window`` does.

    Raises:
        EvaluationError: the server ran something else than the leg's point; its rows are dropped.
    """
    before = await server.lynx()
    streams, scorer = asyncio.Semaphore(leg.concurrency), asyncio.Semaphore(1)

    async def one(problem: Problem) -> None:
        prompt = prompt_of(tokenizer, problem)
        async with streams:
            answer = await server.answer(prompt, plan.max_tokens)
        async with scorer:
            full = await server.score([*prompt, *answer["output_ids"]], len(prompt))
        is_correct = await asyncio.to_thread(problem.check, answer["text"])
        served = answer["meta_info"]
        journal.add(
            {
                "kind": "answer",
                **leg.key,
                "problem": problem.name,
                "correct": is_correct,
                "finished": served["finish_reason"]["type"] == "stop",
                "tokens": answer["output_ids"],
                "retained_mass": served["lynx"]["retained_mass"],
                **divergence(served, full["meta_info"]).to_dict(),
            }
        )
        bar.update()

    tasks = [asyncio.ensure_future(one(problem)) for problem in leg.problems]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        after = await server.lynx()
        seen, reason = window(before, after), fault(leg.point, before, after)
        if reason is None:
            journal.add({"kind": "window", **leg.key, **seen})
        else:
            journal.drop(leg.key)
    if reason is not None:
        raise EvaluationError(f"{leg.title} was not what the server ran: {reason}")
    return seen


def window(before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    """The server's counts between two readings."""
    sums = {name: after[name] - before[name] for name in SUMS}
    shadow = {name: after["shadow"][name] - before["shadow"][name] for name in SHADOW_SUMS}
    return {**sums, "shadow": shadow}


def prompt_of(tokenizer: Any, problem: Problem) -> list[int]:
    """Token ids of a problem in the model's chat format; plain text where it has none."""
    if tokenizer.chat_template is None:
        plain: list[int] = tokenizer.encode(problem.prompt)
        return plain
    chat = [{"role": "user", "content": problem.prompt}]
    text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False)
    return ids


def manifest(plan: Plan, info: dict[str, Any]) -> dict[str, Any]:
    """The identity of a measurement; rows of different ones are never mixed."""
    part = info["internal_states"][0]["lynx"]
    present = part["settings"]
    asked = hashlib.sha256("\0".join(problem.prompt for problem in plan.problems).encode())
    return {
        "model": info["model_path"],
        "sglang": part["sglang"],
        "lynx": importlib.metadata.version("lynx-sglang"),
        "layers": part["num_layers"],
        "experts": part["num_experts"],
        "policy": present["policy"],
        "floor": present["floor"],
        "shadow_share": present["shadow_share"],
        "default_tier": present["default_tier"],
        "calibration": present["calibration"],
        "points": [point.name for point in plan.points],
        "concurrency": list(plan.concurrency),
        "problems": len(plan.problems),
        "problems_sha256": asked.hexdigest()[:16],
        "max_tokens": plan.max_tokens,
        "alone": plan.alone,
    }


@contextmanager
def progress(plan: Plan, journal: Journal) -> Iterator[tqdm[Any]]:
    total = sum(len(leg.problems) for leg in plan.legs())
    done = sum(row["kind"] == "answer" for row in journal.rows)
    with tqdm(total=total, initial=done, unit="answer") as bar:
        yield bar
