"""Lynx in the process that takes requests, on stand-ins for SGLang's managers."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from fastapi import FastAPI, HTTPException, Request
from fastapi.testclient import TestClient
from sglang.srt.managers.io_struct import GenerateReqInput

from lynx_sglang.integration import flags, frontend, tier_alias
from lynx_sglang.loop.tier import Account, Tier
from lynx_sglang.settings import BACKEND


@pytest.fixture(autouse=True)
def served(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """This process started a Lynx server."""
    monkeypatch.setenv("LYNX_DEFAULT_TIER", "flexible")
    flags.publish(BACKEND, {})
    yield
    flags.publish(None, {})


def params(custom: Any) -> SimpleNamespace:
    return SimpleNamespace(custom_params=custom)


def test_a_wrong_tier_is_a_wrong_sampling_value() -> None:
    frontend.refuse_tier(None, params({"lynx": "exact", "other": [1]}), 64)
    with pytest.raises(ValueError, match="got 'turbo'"):
        frontend.refuse_tier(None, params({"lynx": "turbo"}), 64)
    flags.publish(None, {})
    frontend.refuse_tier(None, params({"lynx": "turbo"}), 64)  # a plain server has no tiers


def test_a_report_is_one_object() -> None:
    def gather(_manager: Any, meta: dict[str, Any], _state: Any, info: dict[str, Any], i: int,
               _reason: Any) -> None:  # fmt: skip
        meta.update({key: values[i] for key, values in info.items()})

    info = {"lynx": [[], [{"tier": "exact"}]], "other": [[1], [2]]}
    running: dict[str, Any] = {}
    ended: dict[str, Any] = {}
    frontend.report_once(gather, None, running, None, info, 0, None)
    frontend.report_once(gather, None, ended, None, info, 1, {"type": "stop"})
    assert (running, ended) == ({"other": [1]}, {"lynx": {"tier": "exact"}, "other": [2]})


@pytest.mark.parametrize(
    ("asked", "tokens", "tier"),
    [({"lynx": "exact"}, [], Tier.EXACT), (None, [], Tier.FLEXIBLE), (None, [5], None)],
)
def test_who_waited_in_vain_has_a_report(asked: Any, tokens: list[int], tier: Tier | None) -> None:
    state = SimpleNamespace(
        out_list=[], output_ids=tokens, obj=SimpleNamespace(sampling_params=vars(params(asked)))
    )
    manager = SimpleNamespace(rid_to_state={"a": state})

    def handle(_manager: Any, _abort: Any) -> None:
        state.out_list.append({"meta_info": {}})

    frontend.report_unserved(handle, manager, SimpleNamespace(rid="a"))
    frontend.report_unserved(lambda *_: None, manager, SimpleNamespace(rid="gone"))
    (out,) = state.out_list
    assert out["meta_info"].get("lynx") == (None if tier is None else Account().report(tier))


def test_a_refused_change_answers_why() -> None:
    async def original(_manager: Any, _request: Any) -> list[bool]:
        return [False]

    async def state() -> list[dict[str, Any]]:
        return [{"lynx": {"refused_change": "lynx_budget: got 999; too many"}}]

    manager = SimpleNamespace(get_internal_state=state)
    with pytest.raises(HTTPException, match="got 999"):
        asyncio.run(
            frontend.explain_refusal(
                original, manager, SimpleNamespace(server_args={"lynx_budget": 999})
            )
        )
    others = SimpleNamespace(server_args={"page_size": 1})
    assert asyncio.run(frontend.explain_refusal(original, manager, others)) == [False]


@pytest.mark.parametrize(
    ("path", "body", "seen", "status"),
    [
        ("/set_internal_state", {"lynx_budget": "full"}, {"lynx_budget": -1}, 200),
        ("/set_internal_state", {"lynx_slo_itl_ms": True}, None, 400),
        ("/generate", {"lynx_slo_itl_ms": True}, {"lynx_slo_itl_ms": True}, 200),
    ],
)
def test_the_filter_reads_changes_alone(path: str, body: Any, seen: Any, status: int) -> None:
    app, got = FastAPI(), []

    @app.post(path)
    async def endpoint(request: Request) -> None:
        got.append((await request.json())["server_args"])

    app.add_middleware(frontend.ChangeFilter)
    response = TestClient(app).post(path, content=json.dumps({"server_args": body}))
    assert response.status_code == status
    assert got == ([] if seen is None else [seen])
    if status == 400:
        assert "lynx_slo_itl_ms" in response.json()["message"]


def resolved(
    lora_path: Any, sampling_params: Any, adapters: frozenset[str] = frozenset()
) -> tuple[Any, Any]:
    """A request's adapter and sampling values once SGLang looks its adapters up."""
    manager = SimpleNamespace(enable_lora=bool(adapters), lora_ref_cache=dict.fromkeys(adapters))
    request = GenerateReqInput(
        text="x" if isinstance(lora_path, str) else ["x"] * len(lora_path),
        lora_path=lora_path,
        sampling_params=sampling_params,
    )
    request.normalize_batch_and_arguments()
    if not request.is_single:
        assert request[0] is request[0]  # made once

    async def look_up(_manager: Any, request: Any) -> None:
        names = [request.lora_path] if isinstance(request.lora_path, str) else request.lora_path
        for name in names or ():
            if name is not None and name not in adapters:
                raise ValueError(f"LoRA adapter '{name}' was requested.")

    asyncio.run(tier_alias.resolve(look_up, manager, request))
    if request.is_single:
        return request.lora_path, request.sampling_params
    parts = [request[place] for place in range(len(lora_path))]
    return request.lora_path, [part.sampling_params for part in parts]


def test_a_models_name_names_the_tier() -> None:
    exact = {"custom_params": {"lynx": "exact"}}
    assert resolved("exact", {"top_k": 2}) == (None, {"top_k": 2, **exact})
    assert resolved("exact", {"custom_params": {"x": 1}}) == (
        None, {"custom_params": {"x": 1, "lynx": "exact"}},
    )  # fmt: skip
    assert resolved("exact", exact) == (None, exact)
    shared: dict[str, Any] = {}
    assert resolved(["exact", None], [shared, shared]) == (None, [exact, {}])
    assert shared == {}


def test_adapters_win_over_tiers() -> None:
    adapters = frozenset({"exact", "poet"})
    assert resolved("exact", {}, adapters) == ("exact", {})
    assert resolved(["poet", "flexible"], [{}, {}], adapters) == (
        ["poet", None], [{}, {"custom_params": {"lynx": "flexible"}}],
    )  # fmt: skip


def test_a_name_that_is_neither_names_the_tiers() -> None:
    with pytest.raises(ValueError, match=r"'exakt' was requested\. Lynx's tiers are flexible and"):
        resolved("exakt", {})
    with pytest.raises(ValueError, match="asks for the tier exact, custom_params for 'flexible'"):
        resolved("exact", {"custom_params": {"lynx": "flexible"}})
    flags.publish(None, {})
    with pytest.raises(ValueError, match=r"'exact' was requested\.$"):
        resolved("exact", {})  # a plain server has no tiers
