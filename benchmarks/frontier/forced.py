"""Teacher-forced decoding of thousands of tokens in one pass, with the batches of serving.

The tokens are known, so a layer sees all decode tokens at once; only its selection runs step by
step, on the M rows of a step. Each token attends to the keys and values of its predecessors in the
same capped run, and to its prompt's at full quality.

The answers are laid end to end in random order and the line is folded into M equal pieces, one per
slot of a batch; column s of the fold is step s. So a batch always has M rows at unlike positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.frontier.free import prefill
from benchmarks.frontier.sharing import Router, routed
from benchmarks.frontier.transcripts import Transcript
from models.model import Batch, Cache, Model


@dataclass(frozen=True, slots=True)
class Outcome:
    """Per decode token: log-probabilities [N, vocabulary] of the next token."""

    log_probs: Tensor


class Forced:
    """The decode tokens of some transcripts, ready to run under any routing."""

    def __init__(self, model: Model, transcripts: Sequence[Transcript], seed: int = 0) -> None:
        kept = [each for each in transcripts if len(each.answer) > 1]
        self.model = model
        self.tasks = [each.problem.task for each in kept]
        self.lengths = torch.tensor([len(each.answer) - 1 for each in kept])
        self.inputs = torch.tensor([t for each in kept for t in each.answer[:-1]])
        self.targets = torch.tensor([t for each in kept for t in each.answer[1:]])
        self.problem = torch.arange(len(kept)).repeat_interleave(self.lengths)  # of each token
        self.order = torch.randperm(len(kept), generator=torch.Generator().manual_seed(seed))
        self._place([each.prompt for each in kept])
        self.full = self.run(None)

    @torch.inference_mode()
    def _place(self, prompts: list[list[int]]) -> None:
        """Prompts' keys and values, padded on the left; the mask of the answers."""
        filled = prefill(self.model, prompts)
        sizes = torch.tensor([len(prompt) for prompt in prompts])
        longest = int(sizes.max())
        shape = self.model.shape
        room = (len(prompts), shape.kv_heads, longest, shape.head_dim)
        self.prompts = []
        for layer in range(shape.layers):
            keys, values = torch.zeros(room), torch.zeros(room)
            for row, each in enumerate(filled):
                keys[row, :, longest - len(prompts[row]) :] = each.layers[layer][0]
                values[row, :, longest - len(prompts[row]) :] = each.layers[layer][1]
            self.prompts.append((keys, values))
        steps = torch.arange(int(self.lengths.max()))
        valid = steps < self.lengths[:, None]
        positions = (sizes[:, None] + steps)[valid]
        in_prompt = torch.arange(longest) >= longest - sizes[:, None]
        before = steps[None, :] <= steps[:, None]
        mask = torch.cat(
            [
                in_prompt[:, None, :].expand(-1, len(steps), -1),
                before.expand(len(prompts), -1, -1),
            ],
            dim=2,
        )
        self.batch = Batch(valid, positions, mask.unsqueeze(1))

    def steps(self, rows: int) -> Tensor:
        """The tokens of each step, int64 [steps, rows]; fewer than `rows` tokens are left over.

        Raises:
            ValueError: two tokens of one answer would meet in a step.
        """
        starts = self.lengths.cumsum(0) - self.lengths
        line = torch.cat([torch.arange(int(self.lengths[i])) + starts[i] for i in self.order])
        count = len(line) // rows
        if count < int(self.lengths.max()):
            raise ValueError(
                f"rows: expected at most {len(line) // int(self.lengths.max())} with "
                f"{len(self.lengths)} answers, got {rows}"
            )
        return line[: count * rows].view(rows, count).t().contiguous()

    @torch.inference_mode()
    def run(self, router: Router | None) -> Tensor:
        """Log-probabilities [N, vocabulary] of every decode token's successor."""
        caches = [Cache(*both) for both in self.prompts]
        if router is None:
            hidden, _ = self.model.hidden(self.inputs, self.batch, caches)
        else:
            with routed(self.model, router):
                hidden, _ = self.model.hidden(self.inputs, self.batch, caches)
        return (hidden @ self.model.embedding.weight.t()).log_softmax(-1)
