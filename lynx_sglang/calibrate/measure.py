"""``lynx-sglang calibrate``: measure on a text how much quality a model loses under caps.

The text runs through SGLang's engine as prefill, once with every expert and once under each cap.
Prompts keep every expert, as in a server. The tokens behind them share experts in groups, as the
rows of a decode step do (``capped_prefill``). KL compares their next-token probabilities in the two
passes over the same text (teacher forcing); earlier answer tokens were capped too. The pass with
every expert also measures the size of each expert's output, for policies that rank experts by it.
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
from tqdm import tqdm

from lynx_controller.decide.budget import offsets_at_least_kl
from lynx_sglang import calibration
from lynx_sglang.calibrate.capped_prefill import scheduler_process
from lynx_sglang.calibrate.passes import Passes
from lynx_sglang.calibrate.text import read
from lynx_sglang.calibration import FORMAT, Calibration
from lynx_sglang.errors import LynxError
from lynx_sglang.evaluation.journal import Journal
from lynx_sglang.evaluation.report import mean_interval
from lynx_sglang.evaluation.server import EvaluationError

SHARES = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.35, 0.3, 0.25, 0.2)
LAYER_SHARE = 0.4
SLOPE_SHARES = (0.6, 0.4)  # KL's growth is read between them
LEAST_KL = 1e-7  # nats; a smaller KL is rounding


def measure(passes: Passes, journal: Journal) -> tuple[list[dict[str, Any]], list[float]]:
    """Cost of each share in all layers, and KL of LAYER_SHARE in each layer alone.

    Passes that ``journal`` has are not run again.

    Raises:
        EvaluationError: a pass capped nothing.
    """
    done = {(row["share"], row["layer"]): row for row in journal.rows}
    layers = passes.state()["layers"]
    asked = [(share, -1) for share in SHARES] + [(LAYER_SHARE, layer) for layer in layers]
    todo = [each for each in asked if each not in done]
    with tqdm(total=len(asked), initial=len(asked) - len(todo), unit="pass") as bar:
        for index, (share, layer) in enumerate(todo):
            later = todo[index + 1 : index + 2]
            bar.set_description(name_of(share, layer))
            bar.set_postfix_str(f"next: {name_of(*later[0])}" if later else "the last pass")
            row = cost_of(passes, share, layer)
            journal.add(row)
            done[share, layer] = row
            bar.update()
            bar.write(
                f"{name_of(share, layer)}: {row['active_experts']:.1f} active experts, "
                f"{row['retained_mass']:.4f} retained mass, KL {row['kl']:.2e} nats"
            )
    shares = [
        {key: value for key, value in done[share, -1].items() if key != "layer"} for share in SHARES
    ]
    return shares, [done[LAYER_SHARE, layer]["kl"] for layer in layers]


def name_of(share: float, layer: int) -> str:
    return f"share {share:g}" if layer < 0 else f"layer {layer} alone, share {share:g}"


def cost_of(passes: Passes, share: float, layer: int) -> dict[str, Any]:
    """One pass under a cap: a row of the journal."""
    kl = passes.kl(share, layer)
    state = passes.state()
    if state["active_experts"] is None or not state["retained_mass"] < 1.0:
        raise EvaluationError(
            f"{name_of(share, layer)}: nothing was capped "
            f"(active experts {state['active_experts']}, retained mass {state['retained_mass']})"
        )
    return {
        "share": share,
        "layer": layer,
        "active_experts": state["active_experts"],
        "retained_mass": state["retained_mass"],
        "kl": float(np.concatenate(kl).mean()),
        "kl_interval_95": mean_interval(kl),
    }


def layer_offsets(shares: list[dict[str, Any]], layer_kl: list[float]) -> list[float]:
    """[L] difference of each layer's share from the mean share at the least sum of KL.

    Caps of all layers together give the growth of KL, caps of single layers give its level.
    """
    kl = {row["share"]: max(row["kl"], LEAST_KL) for row in shares}
    wide, narrow = SLOPE_SHARES
    slope = math.log(kl[narrow] / kl[wide]) / (wide - narrow)
    return offsets_at_least_kl([math.log(max(each, LEAST_KL)) for each in layer_kl], slope)


def least_share(shares: list[dict[str, Any]], quality_loss: float) -> dict[str, Any] | None:
    """The smallest share within ``quality_loss``, as are all larger ones; None if there is none.

    A share is within it if the upper end of the 95 % interval of its KL is.
    """
    found = None
    for row in sorted(shares, key=lambda row: -row["share"]):
        if row["kl_interval_95"][1] > quality_loss:
            break
        found = row
    return found


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    default = "(default %(default)s)"
    add("--model-path", required=True, help="model folder or name on the Hugging Face hub")
    add(
        "--text",
        type=Path,
        required=True,
        help="file that resembles the model's traffic: .jsonl of prompt and answer, or plain text",
    )
    add("--out", type=Path, required=True, help="file to write, for --lynx-calibration")
    add(
        "--quality-loss",
        type=float,
        default=0.01,
        help=f"KL to the full model that may be lost, nats per token {default}",
    )
    add("--tokens", type=int, default=8192, help=f"tokens of the text to run {default}")
    add(
        "--rows",
        type=int,
        default=16,
        help=f"tokens that share experts, as a server's running requests do {default}",
    )
    add("--policy", default="lynx", help=f"the server's --lynx-policy {default}")
    add("--device", default=None, help="SGLang's --device")


def main(args: argparse.Namespace) -> int:
    """0 if the file was written, 1 with the reason on stderr if not."""
    try:
        made = calibrate(args)
    except (LynxError, OSError) as error:
        report(str(error))
        return 1
    print(
        f"{args.out}: a KL of at most {made.quality_loss:g} nats per token needs "
        f"{made.min_retained_mass:g} retained mass"
    )
    return 0


def calibrate(args: argparse.Namespace) -> Calibration:
    """Run the engine on this machine and write the file.

    Raises:
        LynxError, OSError: an option or the text cannot be used; the message says why.
    """
    for flag, value, least in (("--tokens", args.tokens, 512), ("--rows", args.rows, 2)):
        if value < least:
            raise EvaluationError(f"{flag}: expected {least} or more, got {value}")
    if not args.quality_loss > 0:
        raise EvaluationError(f"--quality-loss: expected above 0 nats, got {args.quality_loss}")
    text = args.text.read_bytes()
    report(f"loading {args.model_path}; next: the text with every expert")
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
        report(f"running {about['tokens']} tokens with every expert; next: under caps")
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


def report(text: str) -> None:
    print(f"lynx-sglang calibrate: {text}", file=sys.stderr, flush=True)


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
