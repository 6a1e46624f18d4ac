"""Whatever comes in from outside is served, or refused by an error that says what is wrong.

``make fuzz`` runs 100,000 cases of each; here it is FUZZ_CASES, 2,000 if unset.
"""

from __future__ import annotations

import copy
import json
import logging
import math
import os
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar

import pytest
import yaml
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from lynx_controller import Batch, Controller, Observation, Phase, Slo
from lynx_controller.log.decision_log import Log, LoggedController
from lynx_controller.log.replay import show
from lynx_sglang import calibration, settings
from lynx_sglang.loop import changes
from lynx_sglang.loop.tier import Tier, asked_tier, tier_of
from lynx_sglang.settings import OPTIONS, Settings

CASES = int(os.environ.get("FUZZ_CASES", "2000"))
fuzz = hypothesis_settings(
    max_examples=CASES,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)
T = TypeVar("T")
LINE = 2_000  # characters of an error

numbers = st.one_of(
    st.integers(), st.floats(), st.sampled_from([0, 1, -1, True, False, 2**63, 10**400, 1e308])
)
words = st.sampled_from(
    ["exact", "flexible", "EXACT", "auto", "none", "full", "50%", "nan%", "%", "1e999", "-0", "\0"]
)
scalars = st.one_of(st.none(), numbers, words, st.text(max_size=20))
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=6,
)


def parts(names: list[str]) -> st.SearchStrategy[str]:
    """Names, and names that are nearly those."""
    known = st.sampled_from(names)
    odd = st.one_of(known.map(str.upper), known.map(lambda name: name + " "), st.text(max_size=10))
    return st.one_of(known, known, odd)


def attempt(call: Callable[[], T]) -> tuple[T | None, str]:
    """The result of a call, or its error's text."""
    try:
        return call(), ""
    except ValueError as error:  # SettingError is one
        text = str(error)
    assert 0 < len(text) < LINE
    return None, text


keys = parts(["lynx", "lynx", "lynx_tier", "other"])


@fuzz
@given(st.one_of(values, st.dictionaries(keys, values, max_size=3)))
def test_custom_params(sent: Any) -> None:
    request = SimpleNamespace(sampling_params=SimpleNamespace(custom_params=sent))
    served = tier_of(request, Tier.FLEXIBLE)
    asked, refusal = attempt(lambda: asked_tier(sent))
    assert served is (Tier.EXACT if refusal else asked or Tier.FLEXIBLE)
    if refusal:
        assert refusal.startswith("custom_params: ")
        assert all(word in refusal for word in ("exact", "flexible"))


entries = st.dictionaries(
    parts([changes.PREFIX + name for name in OPTIONS]), st.one_of(scalars, values), max_size=4
)


def known_good(found: Settings) -> None:
    """Each value would be taken at a start, as it is."""
    assert found.conflict() is None
    for name, value in asdict(found).items():
        assert settings.parse_value(name, "none" if value is None else value, name) == value


@fuzz
@given(st.one_of(entries, values), st.booleans())
def test_bodies_of_set_internal_state(sent: Any, is_wrapped: bool) -> None:
    body = json.dumps({changes.ENTRIES: sent} if is_wrapped else sent).encode()
    wire, refusal = attempt(lambda: changes.wire_body(body))
    if wire is None:
        assert refusal.startswith(changes.PREFIX)
        return
    if not is_wrapped or not isinstance(sent, dict):
        assert wire == body or json.dumps(json.loads(wire)) == json.dumps(json.loads(body))
        return
    ours = {
        key: value
        for key, value in json.loads(wire)[changes.ENTRIES].items()
        if key.startswith(changes.PREFIX)
    }
    assert all(type(value) in (int, float) for value in ours.values())
    after, _ = attempt(lambda: changes.changed(Settings(), ours, lambda asked: asked.excess(64)))
    if after is not None:
        known_good(after)


@fuzz
@given(st.binary(max_size=60))
def test_bodies_that_are_no_json(body: bytes) -> None:
    try:
        json.loads(body)
    except ValueError:
        assert changes.wire_body(body) == body


@fuzz
@given(
    st.dictionaries(
        parts([changes.PREFIX + name for name in (*OPTIONS, "config")]), scalars, max_size=4
    )
)
def test_variables(given_values: dict[str, Any]) -> None:
    environment = {key.upper(): str(value) for key, value in given_values.items()}
    resolved(environment)


def resolved(environment: dict[str, str], config: str | None = None) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of names that are nobody's
        found, _ = attempt(lambda: settings.resolve({}, environment, config))
    if found is not None:
        known_good(found)


@fuzz
@given(
    st.one_of(
        st.dictionaries(parts(list(OPTIONS)), values, max_size=4).map(json.dumps),
        st.dictionaries(parts(list(OPTIONS)), scalars, max_size=4).map(
            lambda entries: yaml.safe_dump(entries, allow_unicode=True)
        ),
        st.text(st.sampled_from("a: -[]{}&*!|>'\"%@,\n\t#\0é0"), max_size=40),
    ).map(str.encode)
    | st.binary(max_size=40)
)
def test_config_files(folder: Path, text: bytes) -> None:
    file = folder / "config"
    file.write_bytes(text)
    resolved({}, str(file))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


LAYERS, EXPERTS = 3, 4
MEASURED = {
    "format": calibration.FORMAT,
    "lynx": calibration.version(),
    "model": "m",
    "model_sha256": "0" * 64,
    "policy": "lynx",
    "rows": 16,
    "tokens": 512,
    "quality_loss": 0.01,
    "min_retained_mass": 0.7,
    "quality_slope": 0.1,
    "shares": [],
    "layer_share": 0.4,
    "layer_kl": [0.1] * LAYERS,
    "layer_offsets": [0.0] * LAYERS,
    "contributions": [[0.5] * EXPERTS] * LAYERS,
}


@fuzz
@given(
    st.dictionaries(
        parts([each.name for each in fields(calibration.Calibration)]), values, max_size=3
    )
)
def test_calibration_files(folder: Path, changed: dict[str, Any]) -> None:
    file = folder / "calibration"
    file.write_text(json.dumps({**MEASURED, **changed}))
    found, _ = attempt(lambda: calibration.load(str(file), "lynx"))
    if found is None:
        return
    attempt(lambda: found.contributions_of(list(range(LAYERS)), EXPERTS))
    offsets = found.layer_offsets
    Controller(Slo(itl_ms=10.0), len(offsets), EXPERTS, 2, layer_offsets=offsets)
    assert 0.01 <= found.min_retained_mass <= 1.0


def observations() -> list[Observation]:
    return [
        Observation(
            step=step, batch=Batch.of(4), step_ms=9.0 + step % 3,
            active_experts=[3, 3, 3], retained_mass=[1.0, 0.9, 0.8], kv_tokens=100 + step,
        )
        for step in range(8)
    ]  # fmt: skip


@pytest.fixture(scope="module")
def log_lines(folder: Path) -> list[dict[str, Any]]:
    file = folder / "log"
    log = Log(file)
    controller = LoggedController(log, Slo(itl_ms=8.0), LAYERS, EXPERTS, 2)
    controller.plan(Batch.of(4))
    for seen in observations():
        controller.step(seen)
    controller.override(budget=2)
    controller.set_slo(Slo(itl_ms=9.0))
    log.close()
    return [json.loads(line) for line in file.read_text().splitlines()]


@fuzz
@given(
    st.integers(0, 11),
    st.lists(
        st.sampled_from(["with", "decision", "slo", "config", "batch", "rows", "step"]), max_size=2
    ),
    st.one_of(
        st.text(max_size=12), st.sampled_from(["n", "call", "num_layers", "top_k", "lynx_log"])
    ),
    values,
    st.binary(max_size=30),
)
def test_decision_logs(
    folder: Path, log_lines: list[dict[str, Any]], at: int, path: list[str], key: str, value: Any,
    torn: bytes,
) -> None:  # fmt: skip
    lines = copy.deepcopy(log_lines)
    entry: Any = lines[at % len(lines)]
    for name in path:
        if isinstance(entry, dict) and isinstance(entry.get(name), dict):
            entry = entry[name]
    entry[key] = value
    file = folder / "damaged"
    texts = [json.dumps(line).encode() for line in lines]
    file.write_bytes(b"\n".join([*texts[:5], torn, *texts[5:]]))
    attempt(lambda: show(file, write=lambda _line: None))


@fuzz
@given(
    st.lists(
        st.tuples(
            st.integers(0, 7),
            st.sampled_from([each.name for each in (*fields(Observation), *fields(Batch))]),
            st.one_of(values, st.sampled_from(list(Phase)), st.lists(st.floats(), max_size=4)),
        ),
        max_size=6,
    ),
    st.sampled_from([None, 0.5, 8.0, 1e4]),
)
def test_observation_streams(damage: list[tuple[int, str, Any]], slo_ms: float | None) -> None:
    controller = Controller(Slo(itl_ms=slo_ms), LAYERS, EXPERTS, 2)
    stream = observations()
    for at, name, value in damage:
        seen = stream[at]
        is_of_batch = name in {each.name for each in fields(Batch)}
        if not is_of_batch or isinstance(seen.batch, Batch):
            object.__setattr__(seen.batch if is_of_batch else seen, name, value)
    for seen in stream:
        decision = controller.step(seen)
        assert len(decision.budget) == LAYERS
        assert all(2 <= cap <= EXPERTS for cap in decision.budget)
        assert 0.0 < decision.share <= 1.0
        assert math.isfinite(decision.predicted_ms)
    json.dumps(controller.state(), default=repr)
