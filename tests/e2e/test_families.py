"""Every model family that SGLang serves on this CPU, through its own model code, with Lynx.

Tiny random models: at full budget all answers are plain SGLang's, a cap holds in every layer and
step, and exact rows keep their ids and weights. CI runs one family of each way to route;
``FAMILIES=all`` (``make families``) runs all of them, and those that plain SGLang does not serve.
"""

from __future__ import annotations

import json
import os
import random
from pathlib import Path
from typing import Any

import pytest

from loadtests.server import CPU_OPTIONS, Server, ServerError
from tests.e2e.families import EXPERTS, FAMILIES, VOCABULARY, Family, write
from tests.e2e.forkserver import ForkedServer, ForkServer

pytestmark = pytest.mark.e2e

ARE_ALL = os.environ.get("FAMILIES") == "all"
SERVED = [each for each in FAMILIES if not each.error and (ARE_ALL or each.is_in_ci)]
UNSERVED = [each for each in FAMILIES if each.error and ARE_ALL]
BASE = tuple(each for each in CPU_OPTIONS if not each.startswith("--dtype"))
OPTIONS = (
    "--load-format=dummy",
    "--trust-remote-code",
    "--enable-tokenizer-batch-encode",
    "--disable-radix-cache",
    "--skip-server-warmup",
)
LYNX = ("--moe-backend=lynx", "--lynx-budget=full")
NEW_TOKENS = 12
BUDGET = EXPERTS // 4
DOCUMENT = Path(__file__).parents[2] / "docs" / "supported.md"
TITLES = ("### Families that ran on a CPU", "### Families that plain SGLang does not serve here")
draw = random.Random(7)
PROMPTS = [[draw.randrange(3, VOCABULARY) for _ in range(draw.randrange(3, 9))] for _ in range(20)]


class KilledServer(ForkedServer):
    """Ends at once: SGLang would sleep for five seconds, and these have nothing to write."""

    def stop(self, grace_s: float = 0.0) -> None:
        super().stop(grace_s)


def server(
    forks: ForkServer, family: Family, folder: Path, *options: str, plugin: str, **environment: str
) -> KilledServer:
    log = folder / f"{plugin}.log"
    base = (*BASE, f"--dtype={family.dtype}", *OPTIONS)
    model = folder / family.architecture
    return KilledServer(forks, model, log, options, base, f"tests.e2e.{plugin}", **environment)


def answers(served: Server, prompts: list[list[int]], exact: int = 0) -> list[list[int]]:
    """Greedy tokens; the first ``exact`` requests are of that tier."""
    greedy: dict[str, Any] = {"temperature": 0, "max_new_tokens": NEW_TOKENS, "ignore_eos": True}
    tiers = ["exact"] * exact + ["flexible"] * (len(prompts) - exact)
    each = [{**greedy, "custom_params": {"lynx": tier}} for tier in tiers]
    replies = served.post("/generate", {"input_ids": prompts, "sampling_params": each})
    return [reply["output_ids"] for reply in replies]


@pytest.mark.parametrize("family", SERVED, ids=lambda each: each.architecture)
def test_full_budget_is_plain_a_cap_holds_and_exact_rows_keep_theirs(
    forks: ForkServer, tmp_path: Path, family: Family
) -> None:
    write(family, tmp_path)
    with server(forks, family, tmp_path, plugin="random_weights") as plain:
        expected = answers(plain, PROMPTS)
    assert len({tuple(each) for each in expected}) > 10  # the weights make a model

    probe = tmp_path / "probe"
    with server(forks, family, tmp_path, *LYNX, plugin="row_probe", ROW_PROBE=str(probe)) as lynx:
        assert answers(lynx, PROMPTS) == expected
        whole = taken(probe)
        change = {"server_args": {"lynx_budget": BUDGET}}
        assert lynx.post("/set_internal_state", change) == [True]
        answers(lynx, PROMPTS[:BUDGET])  # so few that their floors cannot need more
        capped = taken(probe)
        mixed = answers(lynx, PROMPTS[:8], exact=4)
        beside = taken(probe)

    assert len(whole) >= NEW_TOKENS - 1
    assert not any(layer["num_changed"] for layer in whole)
    assert sum(layer["num_active"] for layer in whole) > len(whole) * BUDGET
    assert all(layer["num_active"] <= BUDGET for layer in capped)
    assert all(layer["num_active"] <= max(BUDGET, layer["bound"]) for layer in beside)
    assert all(layer["is_kept"] for layer in beside)
    assert mixed[:4] == expected[:4]
    if family.experts_per_token > 1:  # a floor of one is all that a top-1 router has
        assert any(layer["num_changed"] for layer in capped)
        assert any(layer["num_changed"] for layer in beside)


def taken(probe: Path) -> list[dict[str, Any]]:
    """Layers of all decode steps since the last call."""
    layers = [layer for line in probe.read_text().splitlines() for layer in json.loads(line)]
    probe.unlink()
    return layers


@pytest.mark.parametrize("family", UNSERVED, ids=lambda each: each.architecture)
def test_what_plain_sglang_does_not_serve(
    forks: ForkServer, tmp_path: Path, family: Family
) -> None:
    write(family, tmp_path)
    with (
        pytest.raises((ServerError, OSError)),
        server(forks, family, tmp_path, plugin="random_weights") as plain,
    ):
        answers(plain, PROMPTS)
    assert family.error in (tmp_path / "random_weights.log").read_text()


def test_the_documentation_names_every_family() -> None:
    text = DOCUMENT.read_text()
    served, unserved = (text.split(title)[1].split("\n\n")[2] for title in TITLES)
    for family in FAMILIES:
        assert f"`{family.architecture}`" in (unserved if family.error else served)
        assert f"`{family.architecture}`" not in (served if family.error else unserved)
