"""The OpenAI client on a Lynx server: the same question, flexible and exact.

    make serve                       # in another terminal
    python examples/openai_client.py --port 30000

A flexible request may get fewer experts when the server would miss its SLO. An exact one never
does, even in the same batch. The report on each answer counts the tokens that lost experts.
"""

from __future__ import annotations

import argparse
from typing import Any

from openai import OpenAI

QUESTION = (
    'def scan_answer(xs):\n    """Keep the odd numbers, cap each at 17, '
    'and return how many equal 7."""'
)


def ask(client: OpenAI, tier: str) -> tuple[str, dict[str, Any]]:
    """The answer and Lynx's report: tier, decoded and degraded tokens, retained mass."""
    completion = client.chat.completions.create(
        model="default",
        messages=[{"role": "user", "content": QUESTION}],
        max_tokens=160,
        temperature=0,
        extra_body={"custom_params": {"lynx": tier}, "return_meta_info": True},
    )
    choice = completion.choices[0]
    return choice.message.content or "", choice.model_extra["meta_info"]["lynx"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--url", help="default: http://127.0.0.1:PORT")
    parser.add_argument("--port", type=int, default=30000)
    options = parser.parse_args()
    url = options.url or f"http://127.0.0.1:{options.port}"

    client = OpenAI(base_url=f"{url.rstrip('/')}/v1", api_key="none")
    for tier in ("flexible", "exact"):
        answer, report = ask(client, tier)
        print(f"--- {tier}: {report}\n{answer}")


if __name__ == "__main__":
    main()
