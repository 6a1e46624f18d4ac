"""This server as a replica of a fleet: which model it serves, on what, and where it ships.

Replicas of one model on like machines share what a step costs (``--lynx-store``); the protocol is
``lynx_controller.fleet.member``'s, and none of it waits on the step path.
"""

from __future__ import annotations

import hashlib
import os
import platform
import socket
from typing import Any

import torch

from lynx_controller.fleet.member import Member, replica
from lynx_controller.fleet.store import open_store


def join(
    store_url: str,
    hf_config: Any,
    num_layers: int,
    num_experts: int,
    top_k: int,
    spread: str = "",
) -> Member:
    """Start to ship. A store that cannot be reached is tried again every ten seconds.

    ``spread``: how the model lies on the replica's ranks.
    """
    fingerprint = hashlib.sha256(hf_config.to_json_string().encode()).hexdigest()[:12]
    who = replica(
        f"{hf_config.model_type}-{fingerprint}",
        f"{socket.gethostname()}-{os.getpid()}",
        hardware(spread),
        num_layers,
        num_experts,
        top_k,
    )
    return Member(open_store(store_url), who)


def hardware(spread: str) -> str:
    """What makes replicas comparable: the machine, and how the model lies on the ranks."""
    name = f"cpu {platform.machine()} {torch.get_num_threads()} threads"
    if torch.cuda.is_available():
        name = torch.cuda.get_device_name(0)
    return f"{name} {spread}".rstrip()
