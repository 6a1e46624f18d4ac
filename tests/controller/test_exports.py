"""The package's public names are deliberate."""

from __future__ import annotations

import lynx_controller


def test_the_public_names() -> None:
    assert sorted(lynx_controller.__all__) == [
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
    for name in lynx_controller.__all__:
        assert getattr(lynx_controller, name).__doc__
