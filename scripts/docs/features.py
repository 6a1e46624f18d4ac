"""The table of SGLang features that Lynx serves or refuses, made from the refusals themselves."""

from __future__ import annotations

from lynx_sglang.integration import compatibility
from scripts.docs.markdown import table


def features_table() -> str:
    every = "CPU and GPU"
    rows = [
        ("`--moe-a2a-backend`", every, "Each rank would select for rows of its own."),
        ("`--init-expert-location`", every, "Experts keep their places and ids."),
        *((f"`{compatibility.flag_of(name)}`", every, "Experts keep their places and ids.")
          for name in compatibility.NOT_PLACED),
        ("`--enable-lora`, `--lora-paths`", every, "LoRA on MoE layers is not served."),
        *((f"`{compatibility.flag_of(name)}` above 1", every,
           "Only ranks of tensor and expert parallelism share decisions.")
          for name in compatibility.NOT_SPREAD),
        *((f"`{compatibility.flag_of(name)}`", every, "Ranks would route different rows.")
          for name in compatibility.SCATTERED),
        ("`--speculative-algorithm`", every, "Verify steps are not selected."),
        *((f"`{compatibility.flag_of(name)}`", "GPU", reason)
          for name, reason in compatibility.NOT_WITH_GPU.items()),
        ("`--lynx-shadow-share`, `--lynx-max-quality-loss`", "GPU",
         "Captured steps do not run twice."),
        ("`--quantization`", "CPU", "Quantised experts do not run on the CPU platform."),
    ]  # fmt: skip
    return table(("Refused with Lynx", "On", "Reason"), rows)
