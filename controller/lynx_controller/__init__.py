"""Turns an inter-token-latency SLO into an expert budget, every decode step."""

from lynx_controller.config import ControllerConfig
from lynx_controller.controller import Controller
from lynx_controller.decide.pacing import Bounds, Pace
from lynx_controller.pacer import Pacer
from lynx_controller.types import Batch, Decision, Observation, Phase, Reason, Slo

__all__ = [
    "Batch",
    "Bounds",
    "Controller",
    "ControllerConfig",
    "Decision",
    "Observation",
    "Pace",
    "Pacer",
    "Phase",
    "Reason",
    "Slo",
]
