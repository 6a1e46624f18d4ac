"""Batched decode attention against SGLang's own loop over sequences."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from sglang.srt.layers.attention.torch_native_backend import TorchNativeAttnBackend

from lynx_sglang.cpu.attention import BatchedDecodeAttention


class Pool:
    """A KV pool of two layers' worth of slots, filled with noise."""

    def __init__(self, heads: int, dim: int) -> None:
        self.keys = torch.randn(256, heads, dim)
        self.values = torch.randn(256, heads, dim)
        self.swa_layer_nums = 0

    def get_key_buffer(self, _layer_id: int) -> torch.Tensor:
        return self.keys

    def get_value_buffer(self, _layer_id: int) -> torch.Tensor:
        return self.values


@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (4, 2), (8, 1)])
@pytest.mark.parametrize("seq_lens", [[1], [5], [1, 17, 9], [33, 2, 33, 1, 8]])
def test_equals_the_loop(heads: int, kv_heads: int, seq_lens: list[int]) -> None:
    torch.manual_seed(0)
    batch, dim = len(seq_lens), 16
    pool = Pool(kv_heads, dim)
    request_pool = SimpleNamespace(req_to_token=torch.randint(1, 256, (8, 64), dtype=torch.int32))
    runner = SimpleNamespace(
        device="cpu",
        dtype=torch.float32,
        req_to_token_pool=request_pool,
        token_to_kv_pool=pool,
    )
    forward_batch = SimpleNamespace(
        forward_mode=SimpleNamespace(is_decode=lambda: True),
        seq_lens=torch.tensor(seq_lens),
        req_pool_indices=torch.randperm(8)[:batch],
        out_cache_loc=None,
        encoder_lens=None,
        encoder_out_cache_loc=None,
    )
    layer = SimpleNamespace(
        layer_id=0,
        tp_q_head_num=heads,
        tp_k_head_num=kv_heads,
        qk_head_dim=dim,
        v_head_dim=dim,
        scaling=dim**-0.5,
        is_cross_attention=False,
        sliding_window_size=-1,
    )
    query = torch.randn(batch, heads * dim)
    outputs = []
    for backend_class in (TorchNativeAttnBackend, BatchedDecodeAttention):
        backend = backend_class(runner)
        backend.init_forward_metadata(forward_batch)
        outputs.append(backend.forward_decode(query, None, None, layer, forward_batch))
    torch.testing.assert_close(outputs[1], outputs[0], rtol=1e-5, atol=1e-6)
