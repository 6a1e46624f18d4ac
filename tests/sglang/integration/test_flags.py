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
    monkeypatch.setenv("LYNX_FLOOR", "nonsense")
    parse()
    with pytest.raises(SystemExit, match="LYNX_FLOOR"):
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


class FakeEngine:
    """As much of SGLang's ``Engine`` as carries the settings."""

    server_args_class = staticmethod(SimpleNamespace)
    is_failing = False

    def __init__(self, **kwargs: object) -> None:
        self.server_args = self.server_args_class(**kwargs)
        self.seen = self._launch_subprocesses(server_args=self.server_args)

    @classmethod
    def _launch_subprocesses(cls, server_args: SimpleNamespace) -> flags.Settings | None:
        if cls.is_failing:
            raise RuntimeError("no memory")
        return flags.published()

    def shutdown(self) -> None:
        pass


@pytest.fixture
def engine_class() -> type[FakeEngine]:
    class Engine(FakeEngine):
        _launch_subprocesses = classmethod(FakeEngine._launch_subprocesses.__func__)  # type: ignore[attr-defined]

    flags.extend_engine(Engine)
    return Engine


def test_an_engine_that_ends_leaves_no_settings(engine_class: type[FakeEngine]) -> None:
    engine = engine_class(moe_backend="lynx", lynx_floor=2)
    assert engine.seen is not None
    assert engine.seen.floor == 2
    assert TRANSPORT_VARIABLE in os.environ
    engine.shutdown()
    assert TRANSPORT_VARIABLE not in os.environ


def test_an_engine_that_does_not_start_leaves_no_settings(
    engine_class: type[FakeEngine], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_class, "is_failing", True)
    with pytest.raises(RuntimeError, match="no memory"):
        engine_class(moe_backend="lynx")
    assert TRANSPORT_VARIABLE not in os.environ

    def refuse(**_named: object) -> None:
        raise TypeError("no such argument")

    build = flags.engine_args(refuse)
    with pytest.raises(TypeError, match="no such argument"):
        build(moe_backend="lynx")
    assert TRANSPORT_VARIABLE not in os.environ


def test_an_engine_that_ends_leaves_anothers_settings(engine_class: type[FakeEngine]) -> None:
    first = engine_class(moe_backend="lynx", lynx_floor=2)
    engine_class(moe_backend="lynx", lynx_floor=3)
    first.shutdown()
    settings = flags.published()
    assert settings is not None
    assert settings.floor == 3


def test_help_states_default_and_range_of_each() -> None:
    parser = argparse.ArgumentParser()
    flags.add_cli_args(None, parser)
    text = " ".join(parser.format_help().split())
    for name, spec in OPTIONS.items():
        assert flag_of(name) in text
        assert f"Takes {spec.metadata['allowed']}. Default: {spec.default}." in text
