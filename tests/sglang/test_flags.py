"""The command line and ``Engine``: options leave before SGLang's closed record is built."""

from __future__ import annotations

import argparse
import os
from types import SimpleNamespace

import pytest

from lynx_sglang.errors import SettingError
from lynx_sglang.integration import flags
from lynx_sglang.settings import OPTIONS, TRANSPORT_VARIABLE, flag_of


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("LYNX_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv(TRANSPORT_VARIABLE, "stale")


def parse(*argv: str) -> SimpleNamespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--moe-runner-backend", default="auto")
    flags.add_cli_args(None, parser)
    return flags.from_cli_args(
        lambda _cls, args: SimpleNamespace(**vars(args)), object, parser.parse_args(argv)
    )


def test_without_lynx_nothing_is_published() -> None:
    assert vars(parse()) == {"moe_runner_backend": "auto"}
    assert TRANSPORT_VARIABLE not in os.environ


def test_another_name_is_sglangs_own() -> None:
    assert parse("--moe-backend", "triton").moe_runner_backend == "triton"
    assert flags.published() is None


def test_lynx_can_select_in_front_of_a_runner_of_sglangs() -> None:
    args = parse("--moe-backend", "lynx", "--moe-runner-backend", "flashinfer_cutlass")
    assert vars(args) == {"moe_runner_backend": "flashinfer_cutlass"}
    assert flags.published() is not None
    build = flags.engine_args(SimpleNamespace)
    assert vars(build(moe_backend="lynx", moe_runner_backend="deep_gemm")) == {
        "moe_runner_backend": "deep_gemm"
    }
    assert flags.published() is not None


def test_sglangs_own_flag_takes_the_name_too() -> None:
    assert parse("--moe-runner-backend", "lynx").moe_runner_backend == "lynx"
    assert flags.published() is not None


def test_lynx_options_are_taken_out_and_published() -> None:
    args = parse("--moe-backend", "lynx", "--lynx-slo-itl-ms", "20", "--lynx-budget=25%")
    assert vars(args) == {"moe_runner_backend": "lynx"}
    settings = flags.published()
    assert settings is not None
    assert (settings.slo_itl_ms, settings.budget) == (20.0, "25%")


def test_a_bad_value_ends_the_launcher_with_its_text() -> None:
    with pytest.raises(SystemExit, match="--lynx-floor: expected a whole number"):
        parse("--moe-backend", "lynx", "--lynx-floor", "-1")


def test_options_without_the_backend_are_refused() -> None:
    with pytest.raises(SystemExit, match="--lynx-slo-itl-ms: needs --moe-backend lynx"):
        parse("--lynx-slo-itl-ms", "20")


def test_variables_without_the_backend_do_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LYNX_NONSENSE", "1")
    parse()
    with pytest.raises(SystemExit, match="LYNX_NONSENSE"):
        parse("--moe-backend", "lynx")


def test_engine_takes_the_same_names() -> None:
    build = flags.engine_args(SimpleNamespace)
    args = build(model_path="m", moe_backend="lynx", lynx_slo_itl_ms=20, lynx_policy="oea")
    assert vars(args) == {"model_path": "m", "moe_runner_backend": "lynx"}
    settings = flags.published()
    assert settings is not None
    assert (settings.slo_itl_ms, settings.policy) == (20.0, "oea")
    with pytest.raises(SettingError, match="--lynx-policy"):
        build(moe_backend="lynx", lynx_policy="tiger")


def test_help_states_default_and_range_of_each() -> None:
    parser = argparse.ArgumentParser()
    flags.add_cli_args(None, parser)
    text = " ".join(parser.format_help().split())
    for name, spec in OPTIONS.items():
        assert flag_of(name) in text
        assert f"Takes {spec.metadata['allowed']}. Default: {spec.default}." in text
