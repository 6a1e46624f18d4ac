"""The limits of selection in its Triton form."""

MAX_EXPERTS = 512
MAX_TOP_K = 16
MAX_FUSED_ROWS = 256  # in one launch; more rows take three
SCORINGS = ("none", "softmax", "sigmoid")  # of router logits; none: scores are given
