"""GSM8K's text, and how well it is predicted."""

import json
import math
from pathlib import Path

import pytest
import torch

from models import gsm8k
from models.model import Batch, Model
from models.perplexity import baselines, perplexity
from models.problem import Problem
from models.shape import Shape
from models.vocabulary import MIDDLE, PREFIX, TURN_END, train_tokenizer

WORDS = ("one", "two", "three", "apples", "are", "pears", "and", "plums")


def write(folder: Path, name: str, count: int) -> None:
    rows = [
        {
            "question": f"Ann has {n} pears?",
            "answer": f"{n}+1=<<{n}+1={n + 1}>>{n + 1}\n#### {n + 1}",
        }
        for n in range(count)
    ]
    (folder / name).write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")


def test_training_text_is_split_and_the_test_file_is_not_read_for_it(tmp_path: Path) -> None:
    write(tmp_path, "gsm8k_train.jsonl", 120)
    train, validation = gsm8k.texts(tmp_path, "train"), gsm8k.texts(tmp_path, "validation")
    assert (len(train), len(validation)) == (117, 3)
    assert not {text.prompt for text in train} & {text.prompt for text in validation}
    assert train[0] == Problem("gsm8k", "Ann has 1 pears?", "1+1=2\n#### 2", "2")
    with pytest.raises(ValueError, match=r"must hold gsm8k_test\.jsonl.*grade-school-math"):
        gsm8k.texts(tmp_path, "test")
    with pytest.raises(ValueError, match="split must be one of train, validation, test, got 'dev'"):
        gsm8k.texts(tmp_path, "dev")


def texts(count: int, seed: int) -> list[Problem]:
    generator = torch.Generator().manual_seed(seed)

    def phrase() -> str:
        drawn = torch.randint(len(WORDS), (6,), generator=generator).tolist()
        return " ".join(WORDS[index] for index in drawn)

    return [Problem("gsm8k", phrase(), phrase(), "") for _ in range(count)]


def test_perplexity_counts_each_token_of_the_text_once() -> None:
    torch.manual_seed(0)
    tokenizer = train_tokenizer([w for text in texts(20, 0) for w in (text.prompt, "user\n")], 300)
    model = Model(Shape(vocabulary=300, layers=2, hidden=24, experts=7, top_k=3, inner=5)).eval()
    asked = texts(20, 1)
    nats: dict[str, list[float]] = {"question": [], "answer": []}
    for text in asked:
        parts = (PREFIX, text.prompt, MIDDLE, text.solution + TURN_END)
        pieces = [tokenizer.encode(part).ids for part in parts]
        ids = torch.tensor([token for piece in pieces for token in piece])
        batch = Batch(torch.ones(1, len(ids), dtype=torch.bool), torch.arange(len(ids)))
        with torch.inference_mode():
            scores = model(ids, batch)[0].log_softmax(-1)
        for name, which in (("question", 1), ("answer", 3)):
            start = sum(map(len, pieces[:which]))
            for index in range(start, start + len(pieces[which])):
                nats[name].append(-float(scores[index - 1, ids[index]]))
    found = perplexity(model, tokenizer, asked)
    both = nats["question"] + nats["answer"]
    assert found["tokens"] == len(both)
    for name, losses in (*nats.items(), ("whole", both)):
        assert found[name] == pytest.approx(math.exp(sum(losses) / len(losses)), rel=1e-4)
    size = sum(len(text.prompt + text.solution) for text in asked)
    assert found["bits_per_byte"] == pytest.approx(sum(both) / math.log(2) / size, rel=1e-4)


def test_count_models_know_what_they_should() -> None:
    train, test = texts(400, 0), texts(50, 2)
    tokenizer = train_tokenizer([text.prompt for text in train], 320)
    found = baselines(tokenizer, train, texts(50, 1), test)
    assert found["bigram"] < found["unigram"] < 320
    assert 0 < found["bigram_mix"] < 1
    # Words are drawn evenly, so a token that starts one cannot be told better than one in eight.
    assert found["bigram"] > 2
