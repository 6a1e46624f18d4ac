"""``lynx-sglang calibrate``: measure on a text how much quality a model loses under caps.

The text runs through SGLang's engine as prefill, once with every expert and once under each cap.
Prompts keep every expert, as in a server. The tokens behind them share experts in groups, as the
rows of a decode step do (``capped_prefill``). KL compares their next-token probabilities in the two
passes over the same text (teacher forcing); earlier answer tokens were capped too. The pass with
every expert also measures the size of each expert's output, for policies that rank experts by it.
With ``--sketch-bytes`` it also fits sketches, and the capped passes run with them.
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
from lynx_sglang import calibration, sketches
from lynx_sglang.calibrate import sketching
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
REFILL_SHARES = (0.5, 0.3)  # also measured without sketches, where there are any
LEAST_KL = 1e-7  # nats; a smaller KL is rounding


def measure(passes: Passes, journal: Journal) -> tuple[list[dict[str, Any]], list[float]]:
    """Cost of each share in all layers, and KL of LAYER_SHARE in each layer alone.

    Passes that ``journal`` has are not run again.

    Raises:
        EvaluationError: a pass capped nothing.
    """
    done = {(row["share"], row["layer"]): row for row in journal.rows if not row.get("is_refilled")}
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
                f"{row['covered_mass']:.4f} covered mass, KL {row['kl']:.2e} nats"
            )
    shares = [
        {key: value for key, value in done[share, -1].items() if key != "layer"} for share in SHARES
    ]
    return shares, [done[LAYER_SHARE, layer]["kl"] for layer in layers]


def measure_refill(passes: Passes, journal: Journal) -> list[dict[str, Any]]:
    """Cost of REFILL_SHARES without sketches; ``journal`` marks these rows."""
    done = {row["share"]: row for row in journal.rows if row.get("is_refilled")}
    passes.sketch(None)
    for share in REFILL_SHARES:
        if share not in done:
            done[share] = {**cost_of(passes, share, -1), "is_refilled": True}
            journal.add(done[share])
    return [
        {key: value for key, value in done[share].items() if key not in ("layer", "is_refilled")}
        for share in REFILL_SHARES
    ]


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
        "covered_mass": state["covered_mass"],
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
    add(
        "--sketch-bytes",
        type=share_of_bytes,
        default=0.0,
        metavar="PERCENT",
        help="fit low-rank sketches within this share of the experts' bytes, such as 5%%: they "
        "stand in for the experts that a cap takes from a row, on a CPU (default 0: none)",
    )
    add("--device", default=None, help="SGLang's --device")


def main(args: argparse.Namespace) -> int:
    """0 if the file was written, 1 with the reason on stderr if not."""
    try:
        made = calibrate(args)
    except (LynxError, OSError) as error:
        report(str(error))
        return 1
    print("\n".join(sketch_lines(made)))
    print(
        f"{args.out}: a KL of at most {made.quality_loss:g} nats per token needs "
        f"{made.min_retained_mass:g} {'covered' if made.sketches else 'retained'} mass"
    )
    return 0


def sketch_lines(made: Calibration) -> list[str]:
    """Sketches in words: what they explain, what they weigh, what they change."""
    if made.sketches is None or made.refilled is None:
        return []
    found = made.sketches
    lines = ["layer  mean rank  unexplained energy, held out"]
    lines += [
        f"{layer:5}  {rank:9.2f}  {missed:.3f}"
        for layer, (rank, missed) in enumerate(
            zip(found["mean_rank"], found["unexplained"], strict=True)
        )
    ]
    lines.append(
        f"sketches: {found['bytes'] / 2**20:.1f} MiB, {found['share']:.1%} of the experts' numbers"
    )
    kl = {row["share"]: row["kl"] for row in made.shares}
    lines += [
        f"share {row['share']:g} of the experts: KL {kl[row['share']]:.2e} with sketches, "
        f"{row['kl']:.2e} with a refill ({kl[row['share']] / max(row['kl'], LEAST_KL):.2f}x)"
        for row in made.refilled
    ]
    is_better = all(kl[row["share"]] < row["kl"] for row in made.refilled)
    lines.append(
        "recommended: serve with these sketches"
        if is_better
        else "recommended: calibrate with more --sketch-bytes, or without sketches"
    )
    return lines


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
    if args.sketch_bytes and args.out.resolve().parent == Path(args.model_path).resolve():
        raise EvaluationError(
            f"--out: expected a file outside of the model's folder {args.model_path}: sketches "
            f"must not lie beside its weights; got {args.out}"
        )
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
            "sketch_bytes": args.sketch_bytes,
        }
        sample = {"text_sha256": hashlib.sha256(text).hexdigest()[:16]}
        if args.sketch_bytes:
            sample["weights_sha256"] = sketches.weights_fingerprint(args.model_path)
        rows = args.out.with_name(args.out.name + ".rows")
        if not rows.exists():  # no run to go on with
            sketching.remove(sketch_folder(args.out))
        journal = Journal(rows, {**about, **sample})
        report(f"running {about['tokens']} tokens with every expert; next: under caps")
        passes = Passes(engine, sequences, args.rows, args.policy)
        found, refilled = None, None
        if args.sketch_bytes:
            found = sketch(passes, args, config, sample["weights_sha256"])
            refilled = measure_refill(passes, journal)
            passes.sketch(sketch_file(args.out), found["sha256"], num_experts_of(passes))
        shares, layer_kl = measure(passes, journal)
    finally:
        engine.shutdown()
    cheapest = least_share(shares, args.quality_loss)
    made = Calibration(
        **about,
        quality_loss=args.quality_loss,
        min_retained_mass=1.0 if cheapest is None else round(cheapest["covered_mass"], 4),
        shares=shares,
        layer_share=LAYER_SHARE,
        layer_kl=layer_kl,
        layer_offsets=layer_offsets(shares, layer_kl),
        contributions=passes.contributions,
        sketches=found,
        refilled=refilled,
    )
    made.save(args.out)
    journal.path.unlink()
    sketching.remove(sketch_folder(args.out))
    return made


def sketch(
    passes: Passes, args: argparse.Namespace, config: Any, weights_sha256: str
) -> dict[str, Any]:
    """Fit sketches and write their file; returns the calibration's entry about it."""
    report("fitting sketches; next: under caps")
    shape = sketching.Shape.of(config, num_experts_of(passes))
    folder = sketch_folder(args.out)
    found = sketching.fit_sketches(passes, folder, shape, args.sketch_bytes)
    return sketching.save(found, sketch_file(args.out), weights_sha256, shape)


def num_experts_of(passes: Passes) -> int:
    """Routed experts of a layer.

    Raises:
        EvaluationError: the policy weighs by no expert's output, so none was measured.
    """
    if passes.contributions is None:
        raise EvaluationError(
            f"--sketch-bytes: expected with --policy lynx, got --policy {passes.policy}"
        )
    return len(passes.contributions[0])


def sketch_file(out: Path) -> Path:
    return out.with_name(out.stem + ".sketches.safetensors")


def sketch_folder(out: Path) -> Path:
    return out.with_name(out.name + ".sketches")


def share_of_bytes(text: str) -> float:
    """``5%`` or ``0.05``: a share in [0, 1)."""
    number = text.strip()
    try:
        share = float(number[:-1]) / 100 if number.endswith("%") else float(number)
    except ValueError:
        share = math.nan
    if not 0 <= share < 1:
        raise argparse.ArgumentTypeError(f"expected a share such as 5%, below 100%, got {text!r}")
    return share


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
