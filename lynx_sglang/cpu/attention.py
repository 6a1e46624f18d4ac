"""Decode attention in one batched call per layer, for the CPU platform.

SGLang's ``torch_native`` backend runs a Python loop over sequences at decode, about a quarter of a
CPU step. Here a forward gathers its KV slots once into a padded index [B, L], and each layer runs
one masked attention over all sequences. Prefill is ``torch_native``'s.
"""

from __future__ import annotations

from typing import Any

import torch
from sglang.srt.layers.attention.torch_native_backend import TorchNativeAttnBackend
from sglang.srt.mem_cache.memory_pool import KVWriteLoc
from torch.nn.functional import scaled_dot_product_attention


class BatchedDecodeAttention(TorchNativeAttnBackend):
    """SGLang's ``torch_native`` backend with a batched decode."""

    def __init__(self, model_runner: Any) -> None:
        super().__init__(model_runner)
        self.dtype = model_runner.dtype
        self._kv_slots: torch.Tensor | None = None  # int64 [B * L], None when not decoding
        self._kv_mask: torch.Tensor | None = None  # float [B, 1, 1, L], 0 or -inf

    def init_forward_metadata(self, forward_batch: Any) -> None:
        super().init_forward_metadata(forward_batch)
        self._kv_slots = self._kv_mask = None
        if not forward_batch.forward_mode.is_decode():
            return
        seq_lens = forward_batch.seq_lens
        max_len = int(seq_lens.max()) if seq_lens.numel() else 0
        slots = self.req_to_token_pool.req_to_token[forward_batch.req_pool_indices, :max_len]
        is_past_end = torch.arange(max_len) >= seq_lens.unsqueeze(1)
        # KV slots past a sequence's end are undefined; KV slot 0 is SGLang's padding.
        self._kv_slots = slots.masked_fill(is_past_end, 0).to(torch.int64).reshape(-1)
        mask = torch.zeros(slots.shape, dtype=self.dtype).masked_fill(is_past_end, -torch.inf)
        self._kv_mask = mask[:, None, None, :]

    def forward_decode(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        layer: Any,
        forward_batch: Any,
        save_kv_cache: bool = True,
    ) -> torch.Tensor:
        is_windowed = layer.sliding_window_size is not None and layer.sliding_window_size > -1
        if self._kv_slots is None or layer.is_cross_attention or is_windowed:
            return super().forward_decode(q, k, v, layer, forward_batch, save_kv_cache)  # type: ignore[no-any-return]
        if save_kv_cache and k is not None and v is not None:
            write_slots = KVWriteLoc(forward_batch.out_cache_loc, self.swa_out_cache_loc)
            self.token_to_kv_pool.set_kv_buffer(layer, write_slots, k, v)

        # Query heads of one KV head take the dimension of query tokens: [B, KV heads, group, D].
        query = q.reshape(q.shape[0], layer.tp_k_head_num, -1, layer.qk_head_dim)
        keys = self._gather(self.token_to_kv_pool.get_key_buffer(layer.layer_id), query)
        values = self._gather(self.token_to_kv_pool.get_value_buffer(layer.layer_id), query)
        out = scaled_dot_product_attention(
            query,
            keys,
            values,
            attn_mask=self._kv_mask,
            scale=layer.scaling,
        )
        return out.reshape(-1, layer.tp_q_head_num * layer.v_head_dim)

    def _gather(self, cache: torch.Tensor, query: torch.Tensor) -> torch.Tensor:
        """This step's rows of ``cache`` [KV slots, KV heads, D] as [B, KV heads, L, D]."""
        assert self._kv_slots is not None
        rows = cache.index_select(0, self._kv_slots).to(query.dtype)
        return rows.view(query.shape[0], -1, *cache.shape[1:]).transpose(1, 2)
