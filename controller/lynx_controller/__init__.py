"""Turns an inter-token-latency SLO into an expert budget, every decode step."""

from lynx_controller.config import ControllerConfig
from lynx_controller.controller import Controller
from lynx_controller.types import Batch, Decision, Observation, Phase, Reason, Slo

__all__ = [
    "Batch",
    "Controller",
    "ControllerConfig",
    "Decision",
    "Observation",
    "Phase",
    "Reason",
    "Slo",
]
