"""Run by the tests: an ``Engine`` on a quarter of the experts; prints its state and reports."""

from __future__ import annotations

import json
import os
import sys

import sglang


def main() -> None:
    engine = sglang.Engine(
        model_path=sys.argv[1],
        device="cpu",
        dtype="float32",
        mem_fraction_static=0.1,
        max_total_tokens=20000,
        moe_backend="lynx",
        lynx_budget="25%",
    )
    prompts = [f"<|im_start|>user\nAna has {n} apples.<|im_end|>\n" for n in range(10, 22)]
    sampling = {"temperature": 0, "max_new_tokens": 24, "ignore_eos": True}
    answers = engine.generate(prompts, sampling)
    state = engine.get_server_info()["internal_states"][0]["lynx"]
    reports = [answer["meta_info"]["lynx"] for answer in answers]
    engine.shutdown()
    left = [name for name in os.environ if name.startswith("LYNX_")]
    print(json.dumps([state, reports, left]))


if __name__ == "__main__":
    main()
