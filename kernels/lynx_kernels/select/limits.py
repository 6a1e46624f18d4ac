"""The largest batches that the Triton form of selection serves."""

MAX_EXPERTS = 512
MAX_TOP_K = 16
MAX_FUSED_ROWS = 256  # in one launch; more rows take three
