"""Turns an inter-token-latency SLO into an expert budget, every decode step."""

from .config import ControllerConfig
from .controller import Controller
from .types import Decision, Observation, Phase, Reason, Slo

__all__ = [
    "Controller",
    "ControllerConfig",
    "Decision",
    "Observation",
    "Phase",
    "Reason",
    "Slo",
]
