"""One text through one engine, again and again under other caps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lynx_sglang.calibrate.capped_prefill import FIT, GATHER, JUDGES, PROMPT, SKETCH, STATE
from lynx_sglang.calibrate.text import Sequence
from lynx_sglang.evaluation.divergence import TOP, Top, kl_of, top_of
from lynx_sglang.evaluation.server import EvaluationError

HELD_OUT = 4  # one sequence in so many judges sketches, and fits none


class Passes:
    """Runs the text with every expert first; each further pass is compared with that one."""

    def __init__(self, engine: Any, sequences: list[Sequence], rows: int, policy: str) -> None:
        self.engine, self.sequences, self.rows, self.policy = engine, sequences, rows, policy
        self.has_fitted = False  # sketches, on all but the sequences that judge
        self.full = self.run(1.0)
        state = self.state()
        self.contributions: list[list[float]] | None = state["contributions"]
        layers, measured = len(state["layers"]), self.contributions
        if measured is not None and len(measured) != layers:
            raise EvaluationError(
                f"the outputs of experts were measured in {len(measured)} of {layers} layers only"
            )

    def run(self, share: float, layer: int = -1) -> list[list[Top]]:
        """The most probable next tokens at each position behind each sequence's prompt.

        Args:
            share: of the experts that a group of rows would use uncapped; 1: no cap.
            layer: id of the only layer that is capped; -1: all layers are.
        """
        self.engine.collective_rpc(
            STATE, share=share, layer=layer, rows=self.rows, policy=self.policy
        )
        answers = self.engine.generate(
            input_ids=[each.tokens for each in self.sequences],
            sampling_params=[
                {
                    "temperature": 0,
                    "max_new_tokens": 0,
                    "custom_params": {PROMPT: each.prompt, JUDGES: number % HELD_OUT == 0},
                }
                for number, each in enumerate(self.sequences)
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

    def fit(self, layers: list[int], folder: Path) -> None:
        """Run the text with every expert and write the sketches of these layers."""
        self.engine.collective_rpc(GATHER, layers=layers)
        self.run(1.0)
        self.engine.collective_rpc(FIT, folder=str(folder.resolve()))

    def sketch(self, file: Path | None, digest: str = "", num_experts: int = 0) -> None:
        """Let a file's sketches stand in for lost experts from the next pass on; None: refill."""
        self.has_fitted = True
        path = None if file is None else str(file.resolve())
        self.engine.collective_rpc(SKETCH, file=path, digest=digest, num_experts=num_experts)

    def state(self) -> dict[str, Any]:
        """Counts of the last pass, from the scheduler process."""
        state: dict[str, Any] = self.engine.get_server_info()["internal_states"][0][STATE]
        return state

    def kl(self, share: float, layer: int = -1) -> list[list[float]]:
        """KL to the full model in nats, by sequence and position, under a cap as in ``run``.

        Once sketches were fitted: of the sequences that they were not fitted on.
        """
        capped = self.run(share, layer)
        step = HELD_OUT if self.has_fitted else 1
        return [
            [kl_of(full, other) for full, other in zip(one, two, strict=True)]
            for one, two in zip(self.full[::step], capped[::step], strict=True)
        ]
