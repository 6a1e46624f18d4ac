"""Reference tables made from the code: settings, metrics, commands, policies, SGLang's names."""

from __future__ import annotations

import argparse
import re
import sys
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import prometheus_client

from lynx_kernels import POLICIES
from lynx_sglang import settings, sglang_names
from lynx_sglang.loop import changes
from lynx_sglang.loop.metrics import Metrics
from scripts.docs.markdown import table

ROOT = Path(__file__).resolve().parents[2]
LABELS = ("model_name", "engine_type", "tp_rank", "pp_rank", "moe_ep_rank")  # SGLang's own


def settings_table() -> str:
    """Every setting: flag, variable, range, default, meaning."""
    sections = []
    for name, option in settings.OPTIONS.items():
        metadata = option.metadata
        sections.append(
            f"### `{settings.flag_of(name)}`\n\n{metadata['about']}\n\n"
            + table(
                ("Takes", "Default", "Variable", "In a file"),
                [(metadata["allowed"], f"`{option.default or 'none'}`",
                  f"`{settings.variable_of(name)}`", f"`{name}`")],
            )
        )  # fmt: skip
    return "\n\n".join(sections)


def live_table() -> str:
    """Keys of ``/set_internal_state``."""
    rows = [
        (f"`{changes.PREFIX}{name}`", settings.OPTIONS[name].metadata["allowed"])
        for name in changes.UPDATABLE
    ]
    return table(("Key", "Takes"), rows)


@cache
def metric_families() -> tuple[tuple[str, str, str, tuple[str, ...]], ...]:
    """Lynx's Prometheus metrics as a server makes them: name, kind, HELP text, own labels."""
    registry = prometheus_client.CollectorRegistry()
    Metrics.create(dict.fromkeys(LABELS, ""), registry)
    found = []
    for metric in registry._collector_to_names:
        family = next(iter(metric.describe()))
        own = tuple(name for name in metric._labelnames if name not in LABELS)
        name = family.name + "_total" * (family.type == "counter")
        found.append((name, family.type, family.documentation, own))
    return tuple(sorted(found))


def metrics_table() -> str:
    rows = [
        (f"`{name}`", kind, ", ".join(f"`{label}`" for label in own), about)
        for name, kind, about, own in metric_families()
    ]
    return table(("Metric", "Kind", "Own labels", "Meaning"), rows)


def policies_table() -> str:
    """The values of --lynx-policy, and the policies that only benchmarks have."""
    rows = [
        (f"`{name}`", "yes" if name in settings.SERVED else "no",
         "yes" if policy.has_triton_form else "no", policy.source)
        for name, policy in POLICIES.items()
    ]  # fmt: skip
    return table(("Policy", "Served", "On CUDA", "Source, and departures from it"), rows)


def commands_table() -> str:
    """The subcommands of ``lynx-sglang`` with their help."""
    sections = []
    for name, (about, parser) in subcommands().items():
        rows = [
            (", ".join(f"`{flag}`" for flag in action.option_strings) or f"`{action.dest}`",
             (action.help or "") % {"default": action.default})
            for action in parser._actions
            if not isinstance(action, argparse._HelpAction)
        ]  # fmt: skip
        options = table(("Option", "Meaning"), rows) if rows else "It takes no options."
        sections.append(f"## `lynx-sglang {name}`\n\n{sentence(about)}\n\n{options}")
    return "\n\n".join(sections)


def subcommands() -> dict[str, tuple[str, Any]]:
    """Help text and parser of each subcommand, taken where the command parses its arguments."""
    from lynx_sglang import cli

    caught: list[Any] = []

    class Caught(Exception):
        pass

    def catch(parser: Any, *_: object, **__: object) -> None:
        caught.append(parser)
        raise Caught

    original, argparse.ArgumentParser.parse_args = argparse.ArgumentParser.parse_args, catch  # type: ignore[method-assign, assignment]
    try:
        cli.main([])
    except Caught:
        pass
    finally:
        argparse.ArgumentParser.parse_args = original  # type: ignore[method-assign]
    (action,) = [
        each for each in caught[0]._actions if isinstance(each, argparse._SubParsersAction)
    ]
    about = {choice.dest: choice.help or "" for choice in action._choices_actions}
    return {name: (about[name], parser) for name, parser in action.choices.items()}


def names_table() -> str:
    """Every SGLang name that is touched."""
    rows = []
    for name in sglang_names.NAMES:
        is_in_all = name.versions == sglang_names.SUPPORTED_VERSIONS
        only = "" if is_in_all else f" (SGLang {', '.join(name.versions)} only)"
        rows.append((f"`{name.path}`", name.use.replace("``", "`") + only))
    return table(("SGLang name", "Use"), rows)


def tested_versions_table() -> str:
    """The tests that run on each supported SGLang."""
    installed = version("sglang")
    rows = [
        (each, "yes", "all tests, CPU servers too" if each == installed else "one CPU server")
        for each in sglang_names.SUPPORTED_VERSIONS
    ]  # fmt: skip
    return table(
        ("SGLang", "Names, parameters and attributes, in its source", "Servers and hooks"), rows
    )


def versions_table() -> str:
    """The versions that the package requires, and those that these pages and their tests used."""
    project = (ROOT / "pyproject.toml").read_text()
    (python,) = re.findall(r'^requires-python = "(.+)"$', project, re.MULTILINE)
    made_with = {name: version(name) for name in ("sglang", "torch", "triton", "numpy")}
    here = ".".join(map(str, sys.version_info[:3]))
    rows = [
        ("SGLang", ", ".join(sglang_names.SUPPORTED_VERSIONS), made_with["sglang"]),
        ("Python", python, here),
        ("torch", "as SGLang asks for", made_with["torch"]),
        ("Triton", "as torch asks for", made_with["triton"]),
        ("NumPy", "any that SGLang takes", made_with["numpy"]),
    ]
    return table(("Part", "Supported", "These pages were made with"), rows)


def sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + "." * (not text.endswith("."))
