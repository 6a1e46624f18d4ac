"""The schedule: the work list of the fused MoE on a GPU, rows sorted by expert.

`Schedule` holds its arrays, at fixed addresses and capacity, and `build_schedule_reference` defines
their content. `select` writes a schedule beside every selection that it makes on a GPU; the device
code that does is `triton_words.py` (which row uses which expert) and `triton_lists.py` (the lists).
A routing that was not selected gets its schedule from `lynx_kernels.select.build_schedule`.
"""

from lynx_kernels.schedule.operator import Schedule, build_schedule_reference, local_ids

__all__ = ["Schedule", "build_schedule_reference", "local_ids"]
