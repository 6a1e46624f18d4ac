"""Mistakes of clients and operators are answered, and the server goes on."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from lynx_sglang import cli
from tests.e2e.forkserver import ForkedServer, ForkServer

pytestmark = pytest.mark.e2e

KEY = "field-key"
OPTIONS = ("--sleep-on-idle", "--moe-backend=lynx", "--lynx-budget=25%", f"--api-key={KEY}")
PROMPT = "Question 1: What is 1 plus 17?"


class Client:
    """Asks with the server's key; answers are a status and a body."""

    def __init__(self, url: str) -> None:
        self.url = url

    def __call__(self, path: str, body: Any = None, key: str = KEY) -> tuple[int, Any]:
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {key}"}
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, headers)
        try:
            with urllib.request.urlopen(request, timeout=120) as response:
                text = response.read()
                return response.status, json.loads(text) if text else None
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)

    def text(self, path: str, body: Any) -> tuple[int, str]:
        """Status and body, which may be a stream of events."""
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {KEY}"}
        request = urllib.request.Request(self.url + path, json.dumps(body).encode(), headers)
        try:
            with urllib.request.urlopen(request, timeout=120) as response:
                return response.status, response.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def generate(self, custom_params: Any, **sampling: Any) -> tuple[int, Any]:
        greedy = {"temperature": 0, "max_new_tokens": 6, "ignore_eos": True, **sampling}
        sampling_params = {**greedy, "custom_params": custom_params}
        return self("/generate", {"text": PROMPT, "sampling_params": sampling_params})

    def lynx(self) -> dict[str, Any]:
        _, info = self("/server_info")
        part: dict[str, Any] = info["internal_states"][0]["lynx"]
        return part


@pytest.fixture(scope="module")
def client(
    forks: ForkServer, model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Client]:
    log = tmp_path_factory.mktemp("field") / "log"
    with ForkedServer(forks, model, log, OPTIONS) as server:
        ask = Client(server.url)
        yield ask
        status, answer = ask.generate(None)  # whatever the tests sent, it serves
        assert (status, answer["meta_info"]["lynx"]["tier"]) == (200, "flexible")
        assert "Traceback" not in log.read_text()


SERVED: list[Any] = [None, {}, {"other": [1]}, {"lynx": None}, {"x": {"y": 1}}, {"x": "z" * 10**6}]
REFUSED: list[Any] = [
    *({"lynx": wrong} for wrong in ("turbo", "EXACT", "", 5, True, ["exact"], {"tier": "exact"})),
    *([1], [], "exact", 7, {"LYNX": "exact"}, {"lynx_tier": "exact"}, {"lynx": "x" * 10**6}),
]


@pytest.mark.parametrize("custom_params", SERVED, ids=lambda sent: repr(sent)[:30])
def test_other_custom_params_are_served(client: Client, custom_params: Any) -> None:
    status, answer = client.generate(custom_params)
    assert status == 200
    report = answer["meta_info"]["lynx"]
    assert (report["tier"], report["decode_tokens"]) == ("flexible", 5)


@pytest.mark.parametrize("custom_params", REFUSED, ids=lambda sent: repr(sent)[:30])
def test_a_wrong_tier_is_answered_400(client: Client, custom_params: Any) -> None:
    status, answer = client.generate(custom_params)
    assert status == 400
    assert '{"lynx": "exact"} or {"lynx": "flexible"}' in json.dumps(answer).replace('\\"', '"')


@pytest.mark.parametrize("tier", ["exact", "turbo"])
@pytest.mark.parametrize("form", ["batch", "n", "chat", "completions"])
def test_every_route_reads_the_tier(client: Client, form: str, tier: str) -> None:
    custom = {"custom_params": {"lynx": tier}, "temperature": 0}
    short = {**custom, "max_tokens": 6}
    chat = {"messages": [{"role": "user", "content": PROMPT}], "return_meta_info": True}
    path, body = {
        "batch": ("/generate", {"text": [PROMPT] * 2, "sampling_params": [{}, custom]}),
        "n": ("/generate", {"text": PROMPT, "sampling_params": {**custom, "n": 2}}),
        "chat": ("/v1/chat/completions", {"model": "m", **chat, **short}),
        "completions": ("/v1/completions", {"model": "m", "prompt": PROMPT, **short}),
    }[form]
    status, answer = client(path, body)
    assert status == (200 if tier == "exact" else 400), answer
    if tier == "turbo":
        assert "turbo" in json.dumps(answer)
    elif form == "chat":
        assert answer["choices"][0]["meta_info"]["lynx"]["tier"] == "exact"
    elif form != "completions":
        assert [each["meta_info"]["lynx"]["tier"] for each in answer][-1] == "exact"


@pytest.mark.parametrize("tier", ["exact", "exakt"])
@pytest.mark.parametrize("form", ["native", "batch", "chat", "stream", "completions", "anthropic"])
def test_a_models_name_carries_the_tier(client: Client, form: str, tier: str) -> None:
    """For clients and routers that cannot send ``custom_params``."""
    before = client.lynx()["tiers"]["exact"]["requests"]
    named = {"model": f"m:{tier}", "max_tokens": 6, "temperature": 0}
    chat = {**named, "messages": [{"role": "user", "content": PROMPT}]}
    few = {"sampling_params": {"temperature": 0, "max_new_tokens": 6}}
    path, body = {
        "native": ("/generate", {"text": PROMPT, "lora_path": tier, **few}),
        "batch": ("/generate", {"text": [PROMPT] * 2, "lora_path": [None, tier], **few}),
        "chat": ("/v1/chat/completions", chat),
        "stream": ("/v1/chat/completions", {**chat, "stream": True}),
        "completions": ("/v1/completions", {**named, "prompt": PROMPT}),
        "anthropic": ("/v1/messages", chat),
    }[form]
    status, answer = client.text(path, body)
    if tier == "exact":
        assert status == 200, answer
        assert client.lynx()["tiers"]["exact"]["requests"] == before + 1
    else:
        assert "exakt" in answer
        assert "tiers are flexible and exact" in answer
        assert status == 400, answer


def test_beams_are_exact(client: Client) -> None:
    before = client.lynx()
    status, answer = client.generate(None, beam_width=4, n=2)
    assert status == 200, answer
    after = client.lynx()
    steps = after["decode_steps"] - before["decode_steps"]
    mass = after["retained_mass_sum"] - before["retained_mass_sum"]
    assert steps >= 5
    assert mass == pytest.approx(steps)


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        ({"lynx_budget": 999}, "at most this model's 64 experts"),
        ({"lynx_slo_itl_ms": True}, "lynx_slo_itl_ms (0 for none): expected a number"),
        ({"lynx_slo_itl_ms": "soon"}, "expected a number"),
        ({"lynx_demand": 1.5}, "auto, or a number in [0, 1]"),
        ({"lynx_bugdet": 5}, "lynx_budget"),
    ],
)
def test_a_refused_change_says_why(client: Client, entries: Any, said: str) -> None:
    before = client.lynx()["settings"]
    status, answer = client("/set_internal_state", {"server_args": entries})
    assert status == 400
    assert said in answer["message"]
    assert client.lynx()["settings"] == before


def test_a_change_takes_words(client: Client) -> None:
    for budget in ("full", "12.5%", "25%"):
        status, taken = client("/set_internal_state", {"server_args": {"lynx_budget": budget}})
        assert (status, taken) == (200, [True])
        assert client.lynx()["settings"]["budget"] == budget


def test_status_takes_the_key(client: Client, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["status", "--url", client.url]) == 1
    assert "--api-key" in capsys.readouterr().err
    assert cli.main(["status", "--url", client.url, "--api-key", KEY]) == 0
    assert cli.main(["status", "--url", client.url.removeprefix("http://"), "--api-key", KEY]) == 0


@pytest.mark.parametrize("count", [8, 4])
def test_alike_requests_keep_the_mass_that_the_operator_asks_for(
    client: Client, count: int
) -> None:
    """An SLO that no cut can meet, one template: alike requests lose more to a cap than others."""
    floor, update = 0.75, {"lynx_budget": "auto", "lynx_slo_itl_ms": 0.01}
    status, _ = client("/set_internal_state", {"server_args": update})
    assert status == 200
    prompts = [f"Question {i}: What is {i} plus 17?" for i in range(count)]
    sampling = {"max_new_tokens": 60, "ignore_eos": True, "temperature": 0}
    kept = []
    for _ in range(2):
        status, answers = client("/generate", {"text": prompts, "sampling_params": sampling})
        assert status == 200
        reports = [answer["meta_info"]["lynx"] for answer in answers]
        kept.append(sum(report["retained_mass"] for report in reports) / count)
    assert kept[1] >= floor - 0.01
    assert kept[0] >= floor - 0.05  # the first round's first steps teach it
    update = {"lynx_budget": "25%", "lynx_slo_itl_ms": "none"}
    status, _ = client("/set_internal_state", {"server_args": update})
    assert status == 200


def test_who_is_aborted_in_the_queue_has_a_report(client: Client) -> None:
    """72 requests on 64 places: whoever waits is aborted with no token."""
    long = {"max_new_tokens": 400, "ignore_eos": True, "temperature": 0}
    body = {"text": [PROMPT] * 72, "sampling_params": long}
    before = client.lynx()["decode_steps"]
    with ThreadPoolExecutor(1) as pool:
        asking = pool.submit(client, "/generate", body)
        while client.lynx()["decode_steps"] < before + 5:
            time.sleep(0.1)
        client("/abort_request", {"abort_all": True})
        status, answers = asking.result(120)
    assert status == 200
    reports = [each["meta_info"]["lynx"] for each in answers]
    # Eight found no place; others may not have been prefilled yet.
    assert sum(report["decode_tokens"] == 0 for report in reports) >= 8
    assert any(report["decode_tokens"] > 0 for report in reports)
