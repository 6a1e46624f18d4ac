import dataclasses

import pytest

from lynx_controller import Controller, ControllerConfig, Slo


def test_defaults_are_valid_and_frozen() -> None:
    config = ControllerConfig()
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.margin = 0.1  # type: ignore[misc]


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(ControllerConfig)])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0, 1e12, "much", True])
def test_every_setting_names_itself_and_what_it_got(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=field) as error:
        ControllerConfig(**{field: value})  # type: ignore[arg-type]
    assert repr(value) in str(error.value)


def test_out_of_range_says_the_range() -> None:
    with pytest.raises(ValueError, match=r"min_retained_mass must be in \[0.01, 1.0\], got 0.0"):
        ControllerConfig(min_retained_mass=0.0)


@pytest.mark.parametrize("itl_ms", [0.0, -1.0, float("nan"), float("inf"), 1e9])
def test_slo_rejects(itl_ms: float) -> None:
    with pytest.raises(ValueError, match="itl_ms"):
        Slo(itl_ms=itl_ms)


def test_slo_percentile_range() -> None:
    with pytest.raises(ValueError, match="percentile"):
        Slo(itl_ms=20.0, percentile=100.0)


def test_controller_rejects_impossible_shapes() -> None:
    with pytest.raises(ValueError, match="num_layers"):
        Controller(Slo(), 0, 64, 4)
    with pytest.raises(ValueError, match="top_k"):
        Controller(Slo(), 8, 4, 5)
    for wrong in ([0.1], [0.6] * 8, [float("nan")] * 8):
        with pytest.raises(ValueError, match="layer_offsets must be 8 numbers"):
            Controller(Slo(), 8, 64, 4, layer_offsets=wrong)
