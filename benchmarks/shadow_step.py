"""Cost of the quality guard's shadow passes: a decode step at several shadow shares.

    make bench-shadow

One server, a fixed cap, constant batches of the bundled model. The shares take turns, round after
round, so that other load on the machine slows all alike. No time is printed unless every share
gives the same answers, token for token, and shadows as many steps as it should.
"""

from __future__ import annotations

import argparse
import json
import sys
from contextlib import ExitStack
from pathlib import Path

from benchmarks.command import command
from benchmarks.decode_step import RESULTS, ROOT, generate, machine, prompts_of, spread, step_ms
from loadtests.progress import Stages, track
from loadtests.server import Server, stop_with_me

SHARES = (0.0, 0.02, 1.0)


def steps_of(server: Server) -> tuple[int, int]:
    """Decode steps and shadowed steps so far."""
    part = server.lynx()
    assert part is not None
    return part["decode_steps"], part["shadow"]["steps"]


def set_share(server: Server, share: float) -> None:
    body = {"server_args": {"lynx_shadow_share": share}}
    if server.post("/set_internal_state", body) != [True]:
        raise SystemExit(f"the server did not take the shadow share {share}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model-path", type=Path, default=ROOT / "models/lynx-moe-tiny")
    parser.add_argument("--rows", type=int, default=16, help="running requests (%(default)s)")
    parser.add_argument("--cap", default="25%", help="fixed --lynx-budget (%(default)s)")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--repeats", type=int, default=2, help="answers per round (%(default)s)")
    parser.add_argument("--tokens", type=int, default=40)
    parser.add_argument("--out", type=Path, default=RESULTS / "shadow_step.json")
    args = parser.parse_args()
    stop_with_me()
    prompts = prompts_of(args.rows)

    options = ["--sleep-on-idle", "--moe-backend=lynx", f"--lynx-budget={args.cap}"]
    stages = Stages("start Lynx", "compare answers", "time decode steps")
    with ExitStack() as stack:
        with stages.next():
            log = ROOT / "build/bench/shadow.log"
            server = stack.enter_context(Server(args.model_path, log, options))
        answers = []
        with stages.next():
            for share in SHARES:
                set_share(server, share)
                reply = generate(server, prompts, 96, ignore_eos=False)
                answers.append([answer["output_ids"] for answer in reply])
        if any(each != answers[0] for each in answers):
            print("FAILED: shadow passes changed an answer")
            return 1
        times: dict[float, list[float]] = {share: [] for share in SHARES}
        steps = dict.fromkeys(SHARES, 0)
        shadowed = dict.fromkeys(SHARES, 0)
        with stages.next():
            for _ in track(range(args.rounds), "round", lambda _: "every share"):
                for share in SHARES:
                    set_share(server, share)
                    before = steps_of(server)
                    repeats = [step_ms(server, prompts, args.tokens) for _ in range(args.repeats)]
                    after = steps_of(server)
                    times[share].append(sum(repeats) / args.repeats)
                    steps[share] += after[0] - before[0]
                    shadowed[share] += after[1] - before[1]
    for share in SHARES:
        if abs(shadowed[share] - share * steps[share]) > 1 + 0.5 * share * steps[share]:
            print(f"FAILED: {shadowed[share]} of {steps[share]} steps shadowed at share {share}")
            return 1

    report = {
        "command": command(),
        "machine": machine(),
        "rows": args.rows,
        "cap": args.cap,
        "step_ms": {f"{share:g}": spread(times[share]) for share in SHARES},
        "ratio": {
            f"{share:g}": spread([a / b for a, b in zip(times[share], times[0.0], strict=True)])
            for share in SHARES
        },
        "steps": {f"{share:g}": [shadowed[share], steps[share]] for share in SHARES},
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(report, indent=2) + "\n")
    print(f"{args.rows} running requests at a cap of {args.cap}, {args.rounds} rounds")
    for share in SHARES:
        ms, ratio = report["step_ms"][f"{share:g}"], report["ratio"][f"{share:g}"]
        print(
            f"share {share:4g}: {ms['median']:6.2f} ms [{ms['q1']:.2f}, {ms['q3']:.2f}]  "
            f"{ratio['median']:.2f}x [{ratio['q1']:.2f}, {ratio['q3']:.2f}]  "
            f"{shadowed[share]} of {steps[share]} steps shadowed"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
