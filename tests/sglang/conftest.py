"""What tests that build SGLang's own MoE layers share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

ONE_RANK = {
    **dict.fromkeys(("moe_ep_rank", "moe_tp_rank", "tp_rank"), 0),
    **dict.fromkeys(("moe_ep_size", "moe_tp_size", "tp_size", "attn_tp_size"), 1),
    "tp_group": None,
}


@pytest.fixture(scope="module")
def one_rank() -> Iterator[None]:
    """The process is its replica's only rank."""
    from sglang.srt.runtime_context import get_parallel, publish
    from sglang.srt.server_args import ServerArgs

    from lynx_sglang.flags import BACKEND

    args = ServerArgs(model_path="none", device="cpu", moe_runner_backend=BACKEND)
    publish(args, role="scheduler")
    with get_parallel().override(**ONE_RANK):
        yield
