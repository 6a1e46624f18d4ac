"""The table of features against SGLang's arguments: complete, parsed by its names, and read."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pytest
from sglang.srt.server_args import ServerArgs

from lynx_sglang.integration.features import (
    COUNTED_TWICE,
    FEATURES,
    Feature,
    refusals,
    rows,
    shadow_refusals,
)

WITHOUT_EFFECT = Path(__file__).with_name("fields_without_effect.txt")
# Fields that the check reads by itself, or that SGLang resolves into fields of the table.
READ_ELSEWHERE = {
    *("model_path", "device", "quantization", "moe_runner_backend"),
    *("enable_dp_attention", "rl_on_policy_target"),
}
ASKED: dict[str, Any] = {
    "moe_a2a_backend": "deepep",
    "ep_dispatch_algorithm": "static",
    "init_expert_location": "map.json",
    "elastic_ep_backend": "nixl",
    "ep_join_mode": "scale",
    "load_format": "expert_pack",
    "kt_weight_path": "/weights",
    "cpu_offload_gb": 4,
    "lora_paths": ["a=/adapter"],
    "model_impl": "transformers",
    "speculative_algorithm": "NGRAM",
    "decoupled_spec_role": "verifier",
    "dllm_algorithm": "LowConfidence",
    "disaggregation_mode": "decode",
    "modelopt_quant": "fp8",
    "expert_distribution_recorder_mode": "stat",
    "kv_canary": "log",
    "debug_tensor_dump_output_folder": "/dumps",
}


def asked(feature: Feature) -> Any:
    default = getattr(ServerArgs(model_path="m"), feature.field)
    is_count = isinstance(default, int) and not isinstance(default, bool)
    return ASKED.get(feature.field, 2 if is_count or feature.field == "max_ep_size" else True)


def test_every_argument_of_sglang_is_classified() -> None:
    lines = WITHOUT_EFFECT.read_text().splitlines()
    names = [name for line in lines if not line.startswith("#") for name in line.split()]
    without, table = set(names), {feature.field for feature in (*FEATURES, *COUNTED_TWICE)}
    assert len(names) == len(without)
    assert not without & table
    fields = set(ServerArgs.__struct_fields__)
    assert fields - without - table - READ_ELSEWHERE == set(), "new: put them in the table"
    assert without | table | READ_ELSEWHERE <= fields, "gone from SGLang"


def test_flags_are_sglangs_and_set_the_field_that_is_read() -> None:
    parser = argparse.ArgumentParser()
    ServerArgs.add_cli_args(parser)
    options = parser._option_string_actions
    every = (*FEATURES, *COUNTED_TWICE)
    assert {each.flag: options[each.flag].dest for each in every} == {
        each.flag: each.field for each in every
    }
    assert all(name.split()[0] in options for each in every for name in each.also)


@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_a_server_without_options_asks_for_nothing(device: Any) -> None:
    args = ServerArgs(model_path="m")
    assert list(refusals(args, device)) == list(shadow_refusals(args, device)) == []


@pytest.mark.parametrize("device", ["cuda", "cpu"])
@pytest.mark.parametrize("feature", FEATURES, ids=lambda each: each.field)
def test_each_is_served_or_refused_in_one_line(feature: Feature, device: Any) -> None:
    value = asked(feature)
    lines = list(refusals(ServerArgs(model_path="m", **{feature.field: value}), device))
    if feature.reason_on(device) is None:
        assert lines == []
        return
    (line,) = lines
    given = feature.flag if value is True else f"{feature.flag} {asked(feature)}"
    assert line.startswith(given.replace("['a=/adapter']", "a=/adapter"))
    assert "is not served" in line
    assert str(feature.reason_on(device)) in line
    assert line.endswith(feature.remedy)
    assert "\n" not in line


@pytest.mark.parametrize("device", ["cuda", "cpu"])
@pytest.mark.parametrize("feature", COUNTED_TWICE, ids=lambda each: each.field)
def test_what_counts_a_forward_is_served_without_shadow_passes_alone(
    feature: Feature, device: Any
) -> None:
    args = ServerArgs(model_path="m", **{feature.field: asked(feature)})
    assert list(refusals(args, device)) == []
    lines = list(shadow_refusals(args, device))
    if feature.reason_on(device) is None:
        assert lines == []
        return
    (line,) = lines
    assert line.startswith("beside shadow passes (--lynx-shadow-share, --lynx-max-quality-loss), ")
    assert f"{feature.flag} {asked(feature)} is not served" in line
    assert line.endswith(f"{feature.reason_on(device)}. Remove it.")


@pytest.mark.parametrize(
    ("field", "device", "where"),
    [
        ("modelopt_quant", "cpu", " on a CPU"),
        ("enable_eplb", "cpu", ""),
    ],
)
def test_the_line_says_where(field: str, device: Any, where: str) -> None:
    args = ServerArgs(model_path="m", **{field: ASKED.get(field, True)})
    assert f"is not served{where}:" in next(refusals(args, device))


def test_the_line_says_where_on_a_gpu_too() -> None:
    feature = Feature("F", "--tp-size", "tp_size", bool, "reason", None)
    assert feature.refusal(ServerArgs(model_path="m"), "cpu") is None
    line = feature.refusal(ServerArgs(model_path="m", tp_size=2), "cuda")
    assert line == "--tp-size 2 is not served on a GPU: reason. Remove it."


def test_rows_are_the_table() -> None:
    assert [row.flags[0] for row in rows()] == [feature.flag for feature in FEATURES]
    served = {row.flags[0] for row in rows() if row.cuda is None and row.cpu is None}
    assert served == {
        "--tp-size",
        "--ep-size",
        "--dp-size",
        "--enable-mixed-chunk",
        "--expert-distribution-recorder-mode",
    }
