"""Lynx for SGLang: MoE decoding under a latency SLO, by sharing experts within a batch."""
