"""An SGLang frontend program on a Lynx server: fork, generate, select.

    make serve                       # in another terminal
    python examples/frontend.py --port 30000

Three branches solve the same problem in one batch. The model then selects the most probable of
their answers.
"""

from __future__ import annotations

import argparse
from typing import Any

import sglang as sgl
from sglang import RuntimeEndpoint

QUESTION = (
    "Dan has 57 toys. He collects 32 more. He loses 35 of them. How many toys does Dan have now?"
)
BRANCHES = 3


@sgl.function
def solve(s: Any, question: str) -> None:
    s += sgl.user(question)
    s += sgl.assistant_begin()
    branches = s.fork(BRANCHES)
    for number, branch in enumerate(branches):
        temperature = 0.4 * number  # greedy in the first branch
        branch += sgl.gen("steps", max_tokens=160, temperature=temperature, stop="####")
        branch += "#### " + sgl.gen("answer", max_tokens=4, temperature=0)
    answers = sorted({branch["answer"].strip() for branch in branches})
    s["proposed"] = answers
    s += branches[0]["steps"] + "#### " + sgl.select("answer", choices=answers)
    s += sgl.assistant_end()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--url", help="default: http://127.0.0.1:PORT")
    parser.add_argument("--port", type=int, default=30000)
    options = parser.parse_args()
    url = options.url or f"http://127.0.0.1:{options.port}"

    sgl.set_default_backend(RuntimeEndpoint(url, chat_template_name="chatml"))
    state = solve.run(question=QUESTION)
    print(f"question: {QUESTION}\nproposed: {state['proposed']}\nselected: {state['answer']}")


if __name__ == "__main__":
    main()
