"""This server as a replica of a fleet: its model, its hardware, its store.

Replicas of one model on like machines share their step cost (``--lynx-store``); see
``lynx_controller.fleet``. Nothing here waits on the step path.
"""

from __future__ import annotations

import hashlib
import os
import platform
import socket
from typing import Any

import torch

from lynx_controller.fleet.exchange import Identity
from lynx_controller.fleet.replica import Replica
from lynx_controller.fleet.store import open_store


def join(store_url: str, hf_config: Any, spread: str = "") -> Replica:
    """Start to ship. An unreachable store is tried again every ten seconds.

    ``spread``: how the model lies on the replica's ranks.
    """
    fingerprint = hashlib.sha256(hf_config.to_json_string().encode()).hexdigest()[:12]
    identity = Identity.of(
        model=f"{hf_config.model_type}-{fingerprint}",
        name=f"{socket.gethostname()}-{os.getpid()}",
        block=hardware(spread),
    )
    return Replica(open_store(store_url), identity)


def hardware(spread: str) -> str:
    """The block of comparable replicas: the machine, and how the model lies on the ranks."""
    name = f"cpu {platform.machine()} {torch.get_num_threads()} threads"
    if torch.cuda.is_available():
        name = torch.cuda.get_device_name(0)
    return f"{name} {spread}".rstrip()
