"""Settings: sources in order of precedence, ranges, and errors that name what was wrong."""

from __future__ import annotations

import json
from dataclasses import asdict

import pytest

from lynx_controller import Slo
from lynx_sglang.errors import SettingError
from lynx_sglang.settings import (
    OPTIONS,
    Settings,
    _warn_of_unknown,
    describe_slo,
    flag_of,
    resolve,
    variable_of,
)


def test_defaults_cut_nothing() -> None:
    settings = resolve({}, {})
    assert settings == Settings()
    assert settings.cap(64) == 64


def test_flag_beats_variable_beats_file(tmp_path) -> None:
    file = tmp_path / "lynx.yaml"
    file.write_text("slo_itl_ms: 10\nfloor: 2\nmin-retained-mass: 0.3\n")
    environment = {"LYNX_SLO_ITL_MS": "20", "LYNX_FLOOR": "3"}
    settings = resolve({"slo_itl_ms": "30"}, environment, str(file))
    assert (settings.slo_itl_ms, settings.floor, settings.min_retained_mass) == (30.0, 3, 0.3)


@pytest.mark.parametrize("key", ["slo_itl_ms", "--lynx-slo-itl-ms", "lynx_slo_itl_ms"])
def test_file_takes_the_flags_names(tmp_path, key: str) -> None:
    file = tmp_path / "lynx.json"
    file.write_text(json.dumps({key: 25}))
    assert resolve({}, {"LYNX_CONFIG": str(file)}).slo_itl_ms == 25.0


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("slo_itl_ms", "0"),
        ("slo_itl_ms", "-3"),
        ("slo_itl_ms", "nan"),
        ("slo_itl_ms", "fast"),
        ("slo_itl_ms", True),
        ("prefill_pacing", "auto"),
        ("slo_tpot_ms", "0"),
        ("slo_tpot_ms", "60001"),
        ("slo_ttft_ms", "0"),
        ("slo_ttft_ms", "600001"),
        ("slo_ttft_ms", "soon"),
        ("slo_percentile", "100"),
        ("budget", "0"),
        ("budget", "1.5"),
        ("budget", "0%"),
        ("budget", "101%"),
        ("budget", "most"),
        ("demand", "1.01"),
        ("demand", "-0.1"),
        ("min_retained_mass", "0"),
        ("floor", "0"),
        ("shadow_share", "1.1"),
        ("shadow_share", "some"),
        ("max_quality_loss", "0"),
        ("max_quality_loss", "inf"),
        ("floor", "two"),
        ("policy", "tiger"),
        ("default_tier", "gold"),
    ],
)
def test_a_bad_value_names_setting_range_and_value(name: str, value: object) -> None:
    with pytest.raises(SettingError) as caught:
        resolve({name: value}, {})
    text = str(caught.value)
    assert flag_of(name) in text
    assert OPTIONS[name].metadata["allowed"] in text
    assert repr(value) in text


def test_a_bad_variable_is_named() -> None:
    with pytest.raises(SettingError, match="LYNX_FLOOR"):
        resolve({}, {"LYNX_FLOOR": "none"})


@pytest.mark.parametrize(
    ("variable", "nearest"),
    [
        ("LYNX_CFG", "LYNX_CONFIG"),  # the Lynx web browser's configuration file
        ("LYNX_LSS", "LYNX_STORE"),  # and its style sheet
        ("LYNX_SLO_MS", "LYNX_SLO_ITL_MS"),
    ],
)
def test_an_unknown_variable_is_warned_about_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, variable: str, nearest: str
) -> None:
    _warn_of_unknown.cache_clear()
    monkeypatch.setenv(variable, "/etc/lynx.cfg")
    for _ in range(2):
        assert resolve({}) == Settings()
    assert [record.getMessage() for record in caplog.records] == [
        f"{variable} is ignored: lynx has no such setting; the nearest is {nearest}"
    ]


def test_an_unknown_variable_does_not_hide_a_wrong_value() -> None:
    with pytest.raises(SettingError, match="LYNX_FLOOR: expected a whole number"):
        resolve({}, {"LYNX_CFG": "/etc/lynx.cfg", "LYNX_FLOOR": "two"})


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("slo: 20", "no such setting 'slo'"),
        ("- 1", "expected a mapping"),
        ("{", "neither JSON nor YAML"),
        ("floor: many", "floor: expected a whole number"),
    ],
)
def test_a_bad_file_is_named(tmp_path, text: str, what: str) -> None:
    file = tmp_path / "lynx.yaml"
    file.write_text(text)
    with pytest.raises(SettingError, match=what) as caught:
        resolve({}, {}, str(file))
    assert str(file) in str(caught.value)


def test_a_missing_file_is_named(tmp_path) -> None:
    with pytest.raises(SettingError, match=r"lynx\.yaml: cannot be read"):
        resolve({}, {}, str(tmp_path / "lynx.yaml"))


@pytest.mark.parametrize(
    ("budget", "cap"), [("auto", 64), ("full", 64), ("16", 16), ("25%", 16), ("0.1%", 1), (99, 64)]
)
def test_caps_in_experts(budget: object, cap: int) -> None:
    assert resolve({"budget": budget}, {}).cap(64) == cap


@pytest.mark.parametrize("word", ["on", "off", "advise"])
def test_yaml_may_read_on_and_off_as_booleans(tmp_path, word: str) -> None:
    file = tmp_path / "lynx.yaml"
    file.write_text(f"prefill_pacing: {word}")
    assert resolve({}, {"LYNX_CONFIG": str(file)}).prefill_pacing == word


def test_settings_travel_as_json() -> None:
    settings = resolve({"slo_itl_ms": "none", "budget": "30%", "demand": 0.7}, {})
    assert Settings.from_json(settings.to_json()) == settings


def test_every_option_states_its_range() -> None:
    for name, spec in OPTIONS.items():
        assert spec.metadata["allowed"], name
        assert spec.metadata["about"], name
        assert variable_of(name) == "LYNX_" + name.upper()


@pytest.mark.parametrize(
    ("given", "share"),
    [
        ({}, 0.0),
        ({"max_quality_loss": "0.01"}, 0.02),
        ({"max_quality_loss": "0.01", "shadow_share": "0.5"}, 0.5),
        ({"shadow_share": "1"}, 1.0),
    ],
)
def test_a_quality_limit_brings_its_shadow_passes(given: dict[str, str], share: float) -> None:
    assert resolve(given, {}).shadowed_share == share


def test_a_quality_limit_that_nothing_measures_is_refused() -> None:
    with pytest.raises(SettingError, match=r"--lynx-shadow-share must be auto or above 0, got 0"):
        resolve({"max_quality_loss": "0.01", "shadow_share": "0"}, {})


def test_every_latency_target_reaches_the_controller() -> None:
    settings = resolve({"slo_itl_ms": "20", "slo_tpot_ms": "15", "slo_ttft_ms": "900"}, {})
    assert settings.slo == Slo(20.0, 95.0, tpot_ms=15.0, ttft_ms=900.0)
    assert describe_slo(asdict(settings)) == "SLO p95 ITL 20 ms, SLO TPOT 15 ms, SLO TTFT 900 ms"
    assert describe_slo(asdict(resolve({}, {}))) == "no SLO"
