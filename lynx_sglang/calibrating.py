"""``lynx-sglang calibrate``: measure, on a text, what cutting a model costs.

The text runs through SGLang's engine as prefill, once with every expert and once for each cut. A
cut lets the token positions of a prefill share experts in groups of ``rows``, as the rows of a
decode step do; a group's positions are far apart. KL is between the next-token probabilities of
the two passes over the same text (teacher forcing), with all earlier tokens cut alike.
A server cuts answers alone, after an exact prefill of the question: this overstates their loss.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lynx_kernels import RowClass, select
from lynx_sglang import calibration, doors, routing
from lynx_sglang.calibration import FORMAT, Calibration
from lynx_sglang.errors import LynxError
from lynx_sglang.evaluation.divergence import TOP, Top, kl_of, top_of
from lynx_sglang.evaluation.journal import Journal
from lynx_sglang.evaluation.report import mean_interval
from lynx_sglang.evaluation.server import EvaluationError
from lynx_sglang.plugin import hook_path

SHARES = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.35)
LAYER_SHARE = 0.4
SLOPE_SHARES = (0.6, 0.4)  # between which KL's growth is read
LEAST_KL = 1e-7  # nats; below it a KL is rounding
SPREAD = 0.2  # a layer's share differs from the mean by at most this
SEQUENCE_TOKENS = 256
STATE = "lynx_cut"


class Cut:
    """In the scheduler process: what prefill rows may use now, and what they used."""

    def __init__(self) -> None:
        self.set(share=1.0, layer=-1, rows=1, policy="lynx")

    def set(self, *, share: float, layer: int, rows: int, policy: str) -> None:
        """``share`` of the experts that a group would use; ``layer`` -1: all of them.

        Forgets what was counted.
        """
        self.kept, self.layer, self.rows, self.policy = share, layer, rows, policy
        self.groups, self.active, self.mass, self.count = 0, 0.0, 0.0, 0
        self.layers: set[int] = getattr(self, "layers", set())

    def around_topk(self, original: Callable[..., Any], **call: Any) -> Any:
        """The hook around ``_post_process_topk_ids``."""
        self.layers.add(call["layer_id"])
        if self.kept < 1.0 and self.layer in (-1, call["layer_id"]):
            call["topk_ids"], call["topk_weights"] = self.share(call)
        return original(**call)

    def share(self, call: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
        scores = routing.scores_of(call["router_logits"], call["topk_config"])
        ids, weights = call["topk_ids"].clone(), call["topk_weights"].clone()
        device, num_rows = ids.device, ids.shape[0]
        floor = torch.tensor(1, dtype=torch.int32, device=device)
        apart = -(-num_rows // self.rows)
        for first in range(apart):
            group = torch.arange(first, num_rows, apart, device=device)
            flexible = torch.full_like(group, int(RowClass.FLEXIBLE), dtype=torch.uint8)
            cap = max(1, round(self.kept * ids[group].unique().numel()))
            chosen = select(
                scores[group], ids[group], weights[group], flexible,
                budget=torch.tensor(cap, dtype=torch.int32, device=device), floor=floor,
                policy=self.policy,
                correction_bias=call["topk_config"].correction_bias,
            )  # fmt: skip
            ids[group], weights[group] = chosen.topk_ids, chosen.topk_weights
            self.groups += 1
            self.active += float(chosen.num_active)
            self.mass += float(chosen.retained_mass.sum())
            self.count += len(group)
        return ids, weights

    def add_state(self, output: Any, _controller: Any, _request: Any) -> None:
        """The hook after ``get_internal_state``."""
        output.internal_state[STATE] = {
            "layers": sorted(self.layers),
            "active_experts": self.active / self.groups if self.groups else None,
            "retained_mass": self.mass / self.count if self.count else None,
        }


def scheduler_process(*args: Any, **kwargs: Any) -> None:
    """SGLang's scheduler process with a ``Cut`` that the launcher sets by RPC."""
    from sglang.srt.managers.scheduler import Scheduler, run_scheduler_process
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    cut = Cut()
    topk, state = hook_path(doors.POST_PROCESS_TOPK), hook_path(doors.GET_STATE)
    HookRegistry.register(topk, cut.around_topk, HookType.AROUND)
    HookRegistry.register(state, cut.add_state, HookType.AFTER)
    Scheduler.lynx_cut = staticmethod(cut.set)
    run_scheduler_process(*args, **kwargs)


class Passes:
    """An engine and a text, run again and again under other cuts."""

    def __init__(self, engine: Any, sequences: list[list[int]], rows: int, policy: str) -> None:
        self.engine, self.sequences, self.rows, self.policy = engine, sequences, rows, policy
        self.full = self.run(1.0)

    def run(self, share: float, layer: int = -1) -> list[list[Top]]:
        """The most probable next tokens at each position of each sequence."""
        self.engine.collective_rpc(
            STATE, share=share, layer=layer, rows=self.rows, policy=self.policy
        )
        answers = self.engine.generate(
            input_ids=self.sequences,
            sampling_params={"temperature": 0, "max_new_tokens": 0},
            return_logprob=True,
            logprob_start_len=0,
            top_logprobs_num=TOP,
        )
        tops = [answer["meta_info"]["input_top_logprobs"][1:] for answer in answers]
        return [[top_of(entries) for entries in top] for top in tops]

    def state(self) -> dict[str, Any]:
        state: dict[str, Any] = self.engine.get_server_info()["internal_states"][0][STATE]
        return state

    def kl(self, share: float, layer: int = -1) -> list[list[float]]:
        cut = self.run(share, layer)
        return [
            [kl_of(full, other) for full, other in zip(one, two, strict=True)]
            for one, two in zip(self.full, cut, strict=True)
        ]


def measure(passes: Passes, journal: Journal) -> tuple[list[dict[str, Any]], list[float]]:
    """What each share costs, and each layer alone; rows in ``journal`` are not run again."""
    done = {(row["share"], row["layer"]): row for row in journal.rows}
    layers = passes.state()["layers"]
    asked = [(share, -1) for share in SHARES] + [(LAYER_SHARE, layer) for layer in layers]
    for share, layer in asked:
        if (share, layer) in done:
            continue
        kl = passes.kl(share, layer)
        state = passes.state()
        row = {
            "share": share,
            "layer": layer,
            "active_experts": state["active_experts"],
            "retained_mass": state["retained_mass"],
            "kl": float(np.concatenate(kl).mean()),
            "kl_interval_95": mean_interval(kl),
        }
        journal.add(row)
        done[share, layer] = row
        what = f"share {share:g}" if layer < 0 else f"layer {layer} alone, share {share:g}"
        print(
            f"{what}: {row['active_experts']:.1f} active experts, "
            f"{row['retained_mass']:.4f} retained mass, KL {row['kl']:.2e} nats",
            flush=True,
        )
    shares = [
        {key: value for key, value in done[share, -1].items() if key != "layer"} for share in SHARES
    ]
    return shares, [done[LAYER_SHARE, layer]["kl"] for layer in layers]


def layer_offsets(shares: list[dict[str, Any]], layer_kl: list[float]) -> list[float]:
    """[L] by how much each layer's share should differ from the mean share.

    Cut alone to share s, a layer's KL is near exp(a_l - b * s); at a given mean share the sum over
    layers is least where s_l = mean + (a_l - mean a) / b. b is read off cuts of all layers.
    """
    kl = {row["share"]: max(row["kl"], LEAST_KL) for row in shares}
    wide, narrow = SLOPE_SHARES
    slope = math.log(kl[narrow] / kl[wide]) / (wide - narrow)
    if slope <= 0.0:  # no cut was seen to cost more than a lighter one
        return [0.0] * len(layer_kl)
    levels = np.log(np.maximum(layer_kl, LEAST_KL))
    offsets = np.clip((levels - levels.mean()) / slope, -SPREAD, SPREAD)
    return [round(float(each), 4) for each in offsets - offsets.mean()]


def least_share(shares: list[dict[str, Any]], quality_loss: float) -> dict[str, Any] | None:
    """The least share whose KL, and that of all above it, is surely within ``quality_loss``.

    "Surely": the upper end of its 95 % interval. None where no measured share is.
    """
    found = None
    for row in sorted(shares, key=lambda row: -row["share"]):
        if row["kl_interval_95"][1] > quality_loss:
            break
        found = row
    return found


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--model-path", required=True, help="model folder or hub name")
    add("--text", type=Path, required=True, help="text like the model's traffic")
    add("--out", type=Path, required=True, help="file for --lynx-calibration")
    add("--quality-loss", type=float, default=0.01, help="KL, nats per token (default 0.01)")
    add("--tokens", type=int, default=8192, help="of the text to run (default %(default)s)")
    add("--rows", type=int, default=16, help="tokens that share, as running requests do")
    add("--policy", default="lynx", help="as --lynx-policy (default %(default)s)")
    add("--device", default=None, help="as SGLang's --device")


def main(args: argparse.Namespace) -> int:
    """0 when the file is written, 1 when it cannot be."""
    try:
        made = calibrate(args)
    except (LynxError, OSError) as error:
        print(f"lynx-sglang calibrate: {error}", file=sys.stderr)
        return 1
    print(
        f"KL of at most {made.quality_loss:g} nats a token: {made.min_demand:g} of the mass kept; "
        f"written: {args.out}"
    )
    return 0


def calibrate(args: argparse.Namespace) -> Calibration:
    """Run the engine on this machine and write the file.

    Raises:
        LynxError, OSError: an option or the text does not do; the message says why.
    """
    for flag, value, least in (("--tokens", args.tokens, 512), ("--rows", args.rows, 2)):
        if value < least:
            raise EvaluationError(f"{flag}: expected {least} or more, got {value}")
    if not args.quality_loss > 0:
        raise EvaluationError(f"--quality-loss: expected above 0 nats, got {args.quality_loss}")
    text = args.text.read_text()
    engine = engine_of(args)
    try:
        tokens = engine.tokenizer_manager.tokenizer.encode(text)[: args.tokens]
        if len(tokens) < 2 * SEQUENCE_TOKENS:
            raise EvaluationError(
                f"--text {args.text}: expected {2 * SEQUENCE_TOKENS} tokens or more, "
                f"got {len(tokens)}"
            )
        whole = len(tokens) // SEQUENCE_TOKENS * SEQUENCE_TOKENS
        sequences = [
            tokens[start : start + SEQUENCE_TOKENS] for start in range(0, whole, SEQUENCE_TOKENS)
        ]
        config = engine.tokenizer_manager.model_config.hf_text_config
        about = {
            "format": FORMAT,
            "lynx": calibration.version(),
            "model": args.model_path,
            "model_sha256": calibration.fingerprint(config),
            "policy": args.policy,
            "rows": args.rows,
            "tokens": whole,
        }
        sample = {"text_sha256": hashlib.sha256(text.encode()).hexdigest()[:16]}
        journal = Journal(args.out.with_name(args.out.name + ".rows"), {**about, **sample})
        shares, layer_kl = measure(Passes(engine, sequences, args.rows, args.policy), journal)
    finally:
        engine.shutdown()
    cheapest = least_share(shares, args.quality_loss)
    made = Calibration(
        **about,
        quality_loss=args.quality_loss,
        min_demand=1.0 if cheapest is None else round(cheapest["retained_mass"], 4),
        quality_slope=None
        if cheapest is None
        else cheapest["kl"] / (1.0 - cheapest["retained_mass"]),
        shares=shares,
        layer_share=LAYER_SHARE,
        layer_kl=layer_kl,
        layer_offsets=layer_offsets(shares, layer_kl),
    )
    made.save(args.out)
    journal.path.unlink()
    return made


def engine_of(args: argparse.Namespace) -> Any:
    from sglang.srt.entrypoints.engine import Engine

    class CalibrationEngine(Engine):
        run_scheduler_process_func = staticmethod(scheduler_process)

    asyncio.set_event_loop(asyncio.new_event_loop())
    on_cpu = {"dtype": "float32", "mem_fraction_static": 0.1, "max_total_tokens": 32768}
    return CalibrationEngine(
        model_path=args.model_path,
        moe_backend="lynx",
        lynx_budget="full",
        disable_radix_cache=True,
        disable_cuda_graph=True,
        log_level="warning",
        **({"device": args.device} if args.device else {}),
        **(on_cpu if args.device == "cpu" else {}),
    )
