"""The plugin's work in a process, and none where nobody asked for Lynx."""

from __future__ import annotations

import logging
import sys
from collections import defaultdict

import pytest
from sglang.srt.arg_groups import choices, resolution_hooks
from sglang.srt.plugins.hook_registry import HookRegistry

from lynx_sglang import sglang_names
from lynx_sglang.integration import flags, plugin
from lynx_sglang.settings import BACKEND, TRANSPORT_VARIABLE, Settings
from lynx_sglang.sglang_source import Source

LAUNCHER = {
    name.hook_path
    for name in (sglang_names.ADD_CLI_ARGS, sglang_names.FROM_CLI_ARGS, sglang_names.START)
}
SERVER = {
    name.hook_path
    for name in (
        sglang_names.CREATE_RUNNER,
        sglang_names.TOPK_LAYER,
        sglang_names.POST_PROCESS_TOPK,
        sglang_names.RECEIVE,
        sglang_names.RUN_BATCH,
        sglang_names.FORWARD,
        sglang_names.STREAMER_CLASS,
        sglang_names.GET_STATE,
        sglang_names.IDLE,
        sglang_names.PAUSE,
        sglang_names.CONTINUE,
        sglang_names.SET_STATE,
        sglang_names.UPDATE_HANDLERS,
    )
}


@pytest.fixture
def hooks(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[object]]:
    """A fresh process: nothing registered, no settings published."""
    registered: dict[str, list[object]] = defaultdict(list)
    monkeypatch.setattr(HookRegistry, "_hooks", registered)
    monkeypatch.setattr(plugin, "_registered", False)
    monkeypatch.setattr(choices, "MOE_RUNNER_BACKEND_CHOICES", ["auto"])
    monkeypatch.setattr(resolution_hooks, "_HOOKS", {})
    monkeypatch.delenv(TRANSPORT_VARIABLE, raising=False)
    return registered


def test_without_the_backend_only_options_are_added(hooks: dict[str, list[object]]) -> None:
    plugin.register()
    assert set(hooks) == LAUNCHER
    plugin.register()
    assert [len(entries) for entries in hooks.values()] == [1] * len(LAUNCHER)


def test_a_servers_process_gets_the_runtime(
    hooks: dict[str, list[object]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(TRANSPORT_VARIABLE, Settings(slo_itl_ms=20.0).to_json())
    monkeypatch.setattr("lynx_sglang.cpu.runner.install", lambda add_layer, finish: None)
    plugin.register()
    assert set(hooks) == LAUNCHER | SERVER


@pytest.mark.parametrize("title", ["sglang::detokenizer", "sglang::data_parallel_controller"])
def test_a_servers_process_without_a_model_gets_no_runtime(
    title: str, hooks: dict[str, list[object]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(TRANSPORT_VARIABLE, Settings().to_json())
    monkeypatch.setattr(plugin.setproctitle, "getproctitle", lambda: title)
    plugin.register()
    assert set(hooks) == LAUNCHER


def test_the_titles_are_sglangs() -> None:
    """``run_*_process`` sets its title before it loads plugins."""
    for module, title in zip(
        ("detokenizer_manager", "data_parallel_controller"), plugin.WITHOUT_MODEL, strict=True
    ):
        source = Source.installed().text(f"sglang.srt.managers.{module}")
        start = source.index(f'setproctitle.setproctitle("{title}")')
        assert source.index("load_plugins()", start) - start < 300


def test_another_sglang_is_left_alone_with_one_clear_line(
    hooks: dict[str, list[object]],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(sglang_names, "sglang_version", lambda: "0.4.0")
    monkeypatch.setattr(sys, "argv", ["program"])
    with caplog.at_level(logging.WARNING):
        plugin.register()
    assert not hooks
    assert [record.message for record in caplog.records] == [
        "lynx is off: it supports SGLang 0.5.22, 0.5.23, and 0.4.0 is installed. "
        "lynx-sglang check names the differences."
    ]


@pytest.mark.parametrize(
    "line",
    [
        ["--model-path", "m", "--moe-backend", "lynx"],
        ["--moe-backend=lynx"],
        ["--moe-runner-backend", "lynx"],
        ["--lynx-slo-itl-ms=20"],
        None,  # a process of a server that Lynx was published for
    ],
)
def test_another_sglang_that_is_asked_for_lynx_stops(
    hooks: dict[str, list[object]], monkeypatch: pytest.MonkeyPatch, line: list[str] | None
) -> None:
    monkeypatch.setattr(sglang_names, "sglang_version", lambda: "0.4.0")
    monkeypatch.setattr(sys, "argv", ["server", *(line or ())])
    if line is None:
        monkeypatch.setenv(TRANSPORT_VARIABLE, Settings().to_json())
    with pytest.raises(SystemExit, match=r"^lynx: .* 0\.4\.0 is installed\. lynx-sglang check"):
        plugin.register()
    assert not hooks


@pytest.mark.parametrize(
    "line", [[], ["lynx"], ["--moe-backend"], ["--moe-backend", "triton", "--model-path", "lynx"]]
)
def test_other_options_do_not_ask_for_lynx(line: list[str]) -> None:
    assert not flags.are_in(line)


def test_the_backends_name_is_sglangs_choice(hooks: dict[str, list[object]]) -> None:
    plugin.register()
    assert BACKEND in choices.MOE_RUNNER_BACKEND_CHOICES or hooks
