"""The settings, in one frozen dataclass.

A value comes from the first source that has it: command line (``--lynx-slo-itl-ms``), environment
(``LYNX_SLO_ITL_MS``), file (``--lynx-config``, keys ``slo_itl_ms``), default. Each option states
its range and help once, here; command line, errors and documentation are made from them.
"""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from lynx_controller import Slo
from lynx_kernels import POLICIES
from lynx_sglang import calibration, parsers
from lynx_sglang.errors import SettingError, short

logger = logging.getLogger(__name__)

BACKEND = "lynx"  # of --moe-backend
ENV_PREFIX = "LYNX_"
# Carries the resolved settings from the launcher to SGLang's child processes.
TRANSPORT_VARIABLE = "LYNX_RESOLVED_SETTINGS"
GUARD_SHARE = 0.02  # share of capped steps that is shadowed for a quality limit
# Policies that a server can run: it has no similarities of experts.
SERVED = tuple(name for name, policy in POLICIES.items() if not policy.needs_similarity)


def option(default: Any, parse: Callable[[object], Any], allowed: str, about: str) -> Any:
    """A dataclass field with its parser, its range in words and its help text."""
    return field(default=default, metadata={"parse": parse, "allowed": allowed, "about": about})


@dataclass(frozen=True, slots=True)
class Settings:
    """The operator's settings; see each field's ``about``."""

    slo_itl_ms: float | None = option(
        None,
        parsers.word_or(("none",), parsers.in_range(0.0, 60_000.0, is_open_low=True)),
        "a number of milliseconds in (0, 60000], or none",
        "Inter-token latency target, ms. Without it, and without a fixed budget or demand, routing "
        "is unchanged.",
    )
    slo_percentile: float = option(
        95.0,
        parsers.in_range(50.0, 99.9),
        "a percentile in [50, 99.9]",
        "Percentile of the inter-token latency that the target applies to.",
    )
    slo_tpot_ms: float | None = option(
        None,
        parsers.word_or(("none",), parsers.in_range(0.0, 60_000.0, is_open_low=True)),
        "a number of milliseconds in (0, 60000], or none",
        "TPOT target, ms: the mean gap between a request's tokens. Beside an inter-token latency "
        "target, the stricter of the two applies.",
    )
    slo_ttft_ms: float | None = option(
        None,
        parsers.word_or(("none",), parsers.in_range(0.0, 600_000.0, is_open_low=True)),
        "a number of milliseconds in (0, 600000], or none",
        "TTFT target (queueing time only), ms. Faster decode steps end running requests sooner, so "
        "that queued ones start sooner. Prefill takes as long as before.",
    )
    budget: int | str = option(
        "auto",
        parsers.word_or(("auto", "full"), parsers.cap),
        "auto, full, a whole number of experts >= 1, or a share of all experts in (0%, 100%]",
        "Cap on the distinct experts of each layer in a decode step. auto: the controller sets it. "
        "full: no cap and no selection.",
    )
    demand: float | str = option(
        "auto",
        parsers.word_or(("auto",), parsers.in_range(0.0, 1.0)),
        "auto, or a number in [0, 1]",
        "Share of its routing mass that each token's experts must hold before the batch's cap "
        "applies. auto: all of it, and the controller sets the cap.",
    )
    share: float | str = option(
        "auto",
        parsers.word_or(("auto",), parsers.share),
        "auto, or a share in (0%, 100%] or (0, 1]",
        "Fixed share of the experts that a step would use uncapped, split over the layers as under "
        "an SLO: by the calibration where there is one. auto: the controller's.",
    )
    min_retained_mass: float = option(
        0.75,
        parsers.in_range(0.01, 1.0),
        "a number in [0.01, 1]",
        "Quality floor: least share of their routing mass that the tokens of a step retain, on "
        "average, under the controller's caps.",
    )
    floor: int = option(
        1,
        parsers.whole(1, 64),
        "a whole number in [1, 64]",
        "Number of its own experts, strongest first, that a token never loses.",
    )
    policy: str = option(
        "lynx",
        parsers.one_of(*SERVED),
        "one of " + ", ".join(SERVED),
        "Policy that chooses the experts that a batch shares.",
    )
    default_tier: str = option(
        "flexible",
        parsers.one_of("flexible", "exact"),
        "flexible or exact",
        'Tier of requests without custom_params {"lynx": ...}.',
    )
    calibration: str | None = option(
        None,
        parsers.readable_file,
        "a file that exists and may be read, or none",
        "File that `lynx-sglang calibrate` wrote for this model. It sets the default of "
        "--lynx-min-retained-mass and how the cap differs from layer to layer.",
    )
    decision_log: str | None = option(
        None,
        parsers.writable_file,
        "a file in a folder that exists and may be written to, or none",
        "File for a log of every decision and its inputs; `lynx-sglang replay` explains it. With "
        "--dp-size each replica has its own: FILE.dp0.jsonl of FILE.jsonl.",
    )
    max_quality_loss: float | None = option(
        None,
        parsers.word_or(("none",), parsers.in_range(1e-7, 10.0)),
        "a number of nats in [1e-7, 10], or none",
        "Quality limit: mean KL to the full model, nats per token, measured by shadow passes. The "
        "controller keeps it even where that breaks the SLO.",
    )
    shadow_share: float | str = option(
        "auto",
        parsers.word_or(("auto",), parsers.in_range(0.0, 1.0)),
        "auto, or a number in [0, 1]",
        "Share of the capped decode steps that also run with every expert, as shadow passes that "
        "measure the KL. Such a step takes longer. auto: 0.02 with a quality limit, else 0.",
    )

    prefill_pacing: str = option(
        "off",
        parsers.switch("off", "advise", "on"),
        "off, advise or on",
        "Prefill between decode steps under an inter-token latency target: the tokens of a chunk, "
        "and the decode steps between chunks. on: the controller sets them. advise: it only "
        "reports them. off: SGLang's own.",
    )
    store: str | None = option(
        None,
        parsers.store,
        "sqlite:///PATH, redis://HOST:PORT/DB or unix://PATH (with redis-py installed), or none",
        "Store through which replicas of one model on equal hardware share their cost models. A "
        "new replica starts from them. `lynx-sglang fleet-refit` fits them.",
    )

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Settings:
        return cls(**json.loads(text))

    @property
    def slo(self) -> Slo:
        """The targets, as the controller takes them."""
        return Slo(self.slo_itl_ms, self.slo_percentile, self.slo_tpot_ms, self.slo_ttft_ms)

    @property
    def shadowed_share(self) -> float:
        """Share of the capped decode steps that are shadowed."""
        if self.shadow_share == "auto":
            return 0.0 if self.max_quality_loss is None else GUARD_SHARE
        return float(self.shadow_share)

    def conflict(self) -> str | None:
        """The reason to refuse these values together; None if they agree."""
        if self.max_quality_loss is not None and self.shadowed_share == 0.0:
            return (
                "--lynx-max-quality-loss needs shadow passes: "
                f"--lynx-shadow-share must be auto or above 0, got {self.shadow_share}"
            )
        if self.share != "auto" and (self.budget, self.demand) != ("auto", "auto"):
            return (
                "--lynx-share fixes what a step may use, so --lynx-budget and --lynx-demand must "
                f"be auto beside it, got {self.budget} and {self.demand}"
            )
        return None

    def excess(self, num_experts: int) -> str | None:
        """The reason to refuse the budget for this many experts; None if it is a cap on them."""
        if isinstance(self.budget, int) and self.budget > num_experts:
            return (
                f"--lynx-budget takes at most this model's {num_experts} experts, "
                f"got {self.budget}. Use full for no cap."
            )
        return None

    def cap(self, num_experts: int) -> int:
        """The fixed cap in experts, ``num_experts`` where there is none."""
        if isinstance(self.budget, int):
            return min(self.budget, num_experts)
        if self.budget.endswith("%"):
            return max(1, math.floor(num_experts * float(self.budget[:-1]) / 100 + 0.5))
        return num_experts


def describe_slo(values: Mapping[str, Any]) -> str:
    """The SLO among settings by name, in words."""
    named = {
        f"p{values['slo_percentile']:g} ITL": values["slo_itl_ms"],
        "TPOT": values["slo_tpot_ms"],
        "TTFT": values["slo_ttft_ms"],
    }
    targets = [f"SLO {name} {ms:g} ms" for name, ms in named.items() if ms is not None]
    return ", ".join(targets) or "no SLO"


def flag_of(name: str) -> str:
    return "--lynx-" + name.replace("_", "-")


def variable_of(name: str) -> str:
    return ENV_PREFIX + name.upper()


OPTIONS = {option_field.name: option_field for option_field in fields(Settings)}


def parse_value(name: str, value: object, source: str) -> Any:
    """``value`` of setting ``name`` in its type, or SettingError naming ``source``."""
    metadata = OPTIONS[name].metadata
    try:
        parsed = metadata["parse"](value)
    except (TypeError, ValueError, ArithmeticError, RecursionError, OSError, ImportError):
        raise SettingError(
            f"{source}: expected {metadata['allowed']}, got {short(value)}. {metadata['about']}"
        ) from None
    return None if parsed == "none" else parsed


def resolve(
    flags: Mapping[str, object],
    environment: Mapping[str, str] = os.environ,
    config_file: str | None = None,
) -> Settings:
    """Settings from command line, environment and file, each checked at its source.

    Args:
        flags: values given on the command line or to ``Engine``, by field name.
        environment: the process environment; an unknown ``LYNX_*`` name is warned about once.
        config_file: JSON or YAML mapping of field names, from ``--lynx-config``.

    Raises:
        SettingError: names the flag, variable or file entry, its range and what it got.
    """
    config_file = config_file or environment.get(variable_of("config"))
    values = _from_file(config_file) if config_file else {}
    values |= _from_environment(environment)
    for name, value in flags.items():
        values[name] = parse_value(name, value, flag_of(name))
    if values.get("calibration") is not None:
        policy = values.get("policy", OPTIONS["policy"].default)
        values.setdefault(
            "min_retained_mass", calibration.load(values["calibration"], policy).min_retained_mass
        )
    settings = Settings(**values)
    if reason := settings.conflict():
        raise SettingError(reason)
    return settings


def _from_environment(environment: Mapping[str, str]) -> dict[str, Any]:
    known = {variable_of(name): name for name in OPTIONS}
    for variable in environment.keys() - known.keys() - {TRANSPORT_VARIABLE, variable_of("config")}:
        if variable.startswith(ENV_PREFIX):
            _warn_of_unknown(variable)
    return {
        name: parse_value(name, environment[variable], variable)
        for variable, name in known.items()
        if variable in environment
    }


@cache
def _warn_of_unknown(variable: str) -> None:
    """Once for each name: other programs, the Lynx web browser for one, use the same prefix."""
    known = [variable_of(name) for name in (*OPTIONS, "config")]
    (nearest,) = get_close_matches(variable, known, n=1, cutoff=0.0)
    logger.warning("%s is ignored: lynx has no such setting; the nearest is %s", variable, nearest)


def _from_file(path: str) -> dict[str, Any]:
    where = f"--lynx-config {path}"
    try:
        entries = yaml.safe_load(Path(path).read_text())  # YAML reads JSON too
    except OSError as error:
        raise SettingError(f"{where}: cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, ValueError, TypeError, LookupError, AttributeError) as error:
        raise SettingError(f"{where}: neither JSON nor YAML: {str(error)[:300]}") from error
    except RecursionError:
        raise SettingError(f"{where}: nested too deep for settings") from None
    if not isinstance(entries, dict):
        raise SettingError(f"{where}: expected a mapping of settings, got {short(entries)}")
    values = {}
    for key, value in entries.items():
        name = str(key).removeprefix("--").replace("-", "_").removeprefix("lynx_")
        if name not in OPTIONS:
            raise SettingError(
                f"{where}: no such setting {short(key)}; known: {', '.join(OPTIONS)}"
            )
        values[name] = parse_value(name, value, f"{where}: {key}")
    return values
