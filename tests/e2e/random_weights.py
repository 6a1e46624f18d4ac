"""An SGLang plugin of the tests: ``--load-format dummy`` gives a model that answers differently.

SGLang's own dummy weights are tiny and alike, so that every prompt has the same answer. These are
drawn from a parameter's name: the same in every server, and routed differently for every token.
"""

from __future__ import annotations

import zlib

import torch


def fill(model: torch.nn.Module) -> None:
    for name, parameter in model.named_parameters():
        if not parameter.is_floating_point():
            continue
        generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
        drawn = torch.randn(parameter.shape, generator=generator)
        if "norm" in name and parameter.dim() == 1:
            drawn = 1 + 0.1 * drawn
        elif parameter.dim() < 2:
            drawn = 0.1 * drawn  # biases
        else:
            drawn = drawn * parameter.shape[-1] ** -0.5
        parameter.data.copy_(drawn)


def register() -> None:
    from sglang.srt.model_loader import loader

    loader.initialize_dummy_weights = fill
