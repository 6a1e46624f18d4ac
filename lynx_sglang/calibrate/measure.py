"""``lynx-sglang calibrate``: measure, on a text, what cutting a model costs.

The text runs through SGLang's engine as prefill, once with every expert and once for each cut. As
in a server, prompts keep every expert; a cut lets the tokens behind them share experts in groups,
as the rows of a decode step do (``prefill_cut``). KL is between their next-token probabilities in
the two passes over the same text (teacher forcing), with all earlier answer tokens cut alike.
The pass with every expert also tells how much each expert's output weighs, for the policies that
rank experts by it.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np

from lynx_controller.decide.budget import offsets_at_least_kl
from lynx_sglang import calibration
from lynx_sglang.calibrate.prefill_cut import PROMPT, STATE, scheduler_process
from lynx_sglang.calibrate.text import Sequence, read
from lynx_sglang.calibration import FORMAT, Calibration
from lynx_sglang.errors import LynxError
from lynx_sglang.evaluation.divergence import TOP, Top, kl_of, top_of
from lynx_sglang.evaluation.journal import Journal
from lynx_sglang.evaluation.report import mean_interval
from lynx_sglang.evaluation.server import EvaluationError

SHARES = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.35, 0.3, 0.25, 0.2)
LAYER_SHARE = 0.4
SLOPE_SHARES = (0.6, 0.4)  # between which KL's growth is read
LEAST_KL = 1e-7  # nats; below it a KL is rounding


class Passes:
    """An engine and a text, run again and again under other cuts."""

    def __init__(self, engine: Any, sequences: list[Sequence], rows: int, policy: str) -> None:
        self.engine, self.sequences, self.rows, self.policy = engine, sequences, rows, policy
        self.full = self.run(1.0)
        state = self.state()
        self.contributions: list[list[float]] | None = state["contributions"]
        layers, measured = len(state["layers"]), self.contributions
        if measured is not None and len(measured) != layers:
            raise EvaluationError(
                f"the outputs of experts could be measured in {len(measured)} of {layers} layers"
            )

    def run(self, share: float, layer: int = -1) -> list[list[Top]]:
        """The most probable next tokens at each position behind each sequence's prompt."""
        self.engine.collective_rpc(
            STATE, share=share, layer=layer, rows=self.rows, policy=self.policy
        )
        answers = self.engine.generate(
            input_ids=[each.tokens for each in self.sequences],
            sampling_params=[
                {"temperature": 0, "max_new_tokens": 0, "custom_params": {PROMPT: each.prompt}}
                for each in self.sequences
            ],
            return_logprob=True,
            logprob_start_len=0,
            top_logprobs_num=TOP,
        )
        tops = [  # the first token is predicted by nothing, the next by position 0
            answer["meta_info"]["input_top_logprobs"][1 + each.prompt :]
            for answer, each in zip(answers, self.sequences, strict=True)
        ]
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
        if state["active_experts"] is None or not state["retained_mass"] < 1.0:
            raise EvaluationError(
                f"share {share:g}, layer {layer}: nothing was cut "
                f"(active experts {state['active_experts']}, mass {state['retained_mass']})"
            )
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

    The growth of KL with a cut is read off cuts of all layers, its level off cuts of each alone.
    """
    kl = {row["share"]: max(row["kl"], LEAST_KL) for row in shares}
    wide, narrow = SLOPE_SHARES
    slope = math.log(kl[narrow] / kl[wide]) / (wide - narrow)
    return offsets_at_least_kl([math.log(max(each, LEAST_KL)) for each in layer_kl], slope)


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
    add(
        "--text",
        type=Path,
        required=True,
        help="like the model's traffic: .jsonl of prompt and answer, or text",
    )
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
        f"KL of at most {made.quality_loss:g} nats a token: {made.min_retained_mass:g} of the "
        f"mass kept; written: {args.out}"
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
    text = args.text.read_bytes()
    engine = engine_of(args)
    try:
        encode = engine.tokenizer_manager.tokenizer.encode
        sequences = read(args.text, encode, args.tokens)
        config = engine.tokenizer_manager.model_config.hf_text_config
        about = {
            "format": FORMAT,
            "lynx": calibration.version(),
            "model": args.model_path,
            "model_sha256": calibration.fingerprint(config),
            "policy": args.policy,
            "rows": args.rows,
            "tokens": sum(len(each.tokens) - each.prompt for each in sequences),
        }
        sample = {"text_sha256": hashlib.sha256(text).hexdigest()[:16]}
        journal = Journal(args.out.with_name(args.out.name + ".rows"), {**about, **sample})
        passes = Passes(engine, sequences, args.rows, args.policy)
        shares, layer_kl = measure(passes, journal)
    finally:
        engine.shutdown()
    cheapest = least_share(shares, args.quality_loss)
    made = Calibration(
        **about,
        quality_loss=args.quality_loss,
        min_retained_mass=1.0 if cheapest is None else round(cheapest["retained_mass"], 4),
        shares=shares,
        layer_share=LAYER_SHARE,
        layer_kl=layer_kl,
        layer_offsets=layer_offsets(shares, layer_kl),
        contributions=passes.contributions,
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
