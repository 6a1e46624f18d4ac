from pathlib import Path

import checkpoint
import pytest
import torch
from decoding import complete
from model import Batch, Model
from tasks import TASKS, is_correct, problems
from tokenizers import Tokenizer
from vocabulary import TURN_END, chat_prompt

FOLDER = Path(__file__).parents[2] / "models" / "lynx-moe-tiny"
LIMIT_BYTES = 25_000_000


@pytest.fixture(scope="module")
def loaded() -> tuple[Model, Tokenizer]:
    torch.set_num_threads(1)
    return checkpoint.load(FOLDER)


def test_the_folder_is_small() -> None:
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < LIMIT_BYTES


def test_the_tokenizer_round_trips(loaded: tuple[Model, Tokenizer]) -> None:
    _, tokenizer = loaded
    texts = [text for task in TASKS for p in problems(task, "test", 50, 0) for text in (p.prompt,)]
    for text in [*texts, "  naïve\n\tπ ≈ 3.14159 🙂", ""]:
        assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_digits_are_single_tokens(loaded: tuple[Model, Tokenizer]) -> None:
    _, tokenizer = loaded
    assert tokenizer.encode("1234").tokens == ["1", "2", "3", "4"]


def test_transformers_sees_the_same_tokens_and_template(loaded: tuple[Model, Tokenizer]) -> None:
    transformers = pytest.importorskip("transformers")
    _, tokenizer = loaded
    theirs = transformers.AutoTokenizer.from_pretrained(FOLDER)
    prompt = problems("code", "test", 1, 0)[0].prompt
    messages = [{"role": "user", "content": prompt}]
    text = theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert text == chat_prompt(prompt)
    assert theirs(text)["input_ids"] == tokenizer.encode(text).ids
    assert theirs.eos_token == TURN_END
    assert theirs.eos_token_id == tokenizer.token_to_id(TURN_END)


def test_transformers_computes_the_same_logits(loaded: tuple[Model, Tokenizer]) -> None:
    transformers = pytest.importorskip("transformers")
    model, tokenizer = loaded
    theirs = transformers.AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.float32)
    assert type(theirs).__name__ == "Qwen3MoeForCausalLM"
    for task in TASKS:
        problem = problems(task, "test", 1, 0)[0]
        ids = torch.tensor(tokenizer.encode(chat_prompt(problem.prompt) + problem.solution).ids)
        batch = Batch(torch.ones(1, len(ids), dtype=torch.bool), torch.arange(len(ids)))
        with torch.inference_mode():
            ours, _ = model(ids, batch)
            expected = theirs(ids.unsqueeze(0)).logits[0]
        torch.testing.assert_close(ours, expected, atol=1e-4, rtol=0)


def test_batched_decoding_equals_decoding_alone_and_is_mostly_right(
    loaded: tuple[Model, Tokenizer],
) -> None:
    model, tokenizer = loaded
    asked = [problem for task in TASKS for problem in problems(task, "test", 8, 11)]
    together = complete(model, tokenizer, [problem.prompt for problem in asked])
    alone = [complete(model, tokenizer, [problem.prompt])[0] for problem in asked[7:9]]
    assert together[7:9] == alone
    assert sum(map(is_correct, asked, together)) >= 14
