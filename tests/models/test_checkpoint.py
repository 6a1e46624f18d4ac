from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer

from models import checkpoint
from models.decoding import complete
from models.model import Batch, Model
from models.shape import SHAPES
from models.tasks import TASKS, is_correct, problems
from models.vocabulary import TURN_END, chat_prompt

FOLDERS = Path(__file__).parents[2] / "models"
ARCHITECTURES = {
    "lynx-moe-tiny": "Qwen3MoeForCausalLM",
    "lynx-moe-deep": "Qwen3MoeForCausalLM",
    "lynx-moe-sigmoid": "Glm4MoeForCausalLM",
}
LIMIT_BYTES = 40_000_000
Loaded = tuple[Model, Tokenizer]


@pytest.fixture(scope="module", params=SHAPES)
def folder(request: pytest.FixtureRequest) -> Path:
    return FOLDERS / str(request.param)


@pytest.fixture(scope="module")
def loaded(folder: Path) -> Loaded:
    torch.set_num_threads(1)
    return checkpoint.load(folder)


def test_the_folders_are_small() -> None:
    files = [path for name in SHAPES for path in (FOLDERS / name).iterdir()]
    assert sum(path.stat().st_size for path in files) < LIMIT_BYTES


def test_the_folder_holds_the_shape_of_its_name(folder: Path, loaded: Loaded) -> None:
    assert loaded[0].shape == SHAPES[folder.name]


def test_the_tokenizer_round_trips(loaded: Loaded) -> None:
    _, tokenizer = loaded
    texts = [text for task in TASKS for p in problems(task, "test", 50, 0) for text in (p.prompt,)]
    for text in [*texts, "  naïve\n\tπ ≈ 3.14159 🙂", ""]:
        assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_digits_are_single_tokens(loaded: Loaded) -> None:
    _, tokenizer = loaded
    assert tokenizer.encode("1234").tokens == ["1", "2", "3", "4"]


def test_transformers_sees_the_same_tokens_and_template(folder: Path, loaded: Loaded) -> None:
    transformers = pytest.importorskip("transformers")
    _, tokenizer = loaded
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    prompt = problems("code", "test", 1, 0)[0].prompt
    messages = [{"role": "user", "content": prompt}]
    text = theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert text == chat_prompt(prompt)
    assert theirs(text)["input_ids"] == tokenizer.encode(text).ids
    assert theirs.eos_token == TURN_END
    assert theirs.eos_token_id == tokenizer.token_to_id(TURN_END)


def test_transformers_computes_the_same_logits(folder: Path, loaded: Loaded) -> None:
    transformers = pytest.importorskip("transformers")
    model, tokenizer = loaded
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    assert type(theirs).__name__ == ARCHITECTURES[folder.name]
    for task in TASKS:
        problem = problems(task, "test", 1, 0)[0]
        ids = torch.tensor(tokenizer.encode(chat_prompt(problem.prompt) + problem.solution).ids)
        batch = Batch(torch.ones(1, len(ids), dtype=torch.bool), torch.arange(len(ids)))
        with torch.inference_mode():
            ours, _ = model(ids, batch)
            expected = theirs(ids.unsqueeze(0)).logits[0]
        torch.testing.assert_close(ours, expected, atol=1e-4, rtol=0)


def test_batched_decoding_equals_decoding_alone_and_is_mostly_right(
    loaded: Loaded,
) -> None:
    model, tokenizer = loaded
    asked = [problem for task in TASKS for problem in problems(task, "test", 8, 11)]
    together = complete(model, tokenizer, [problem.prompt for problem in asked])
    alone = [complete(model, tokenizer, [problem.prompt])[0] for problem in asked[7:9]]
    assert together[7:9] == alone
    assert sum(map(is_correct, asked, together)) >= 11


def test_the_deep_models_code_fails_by_the_functions_name_alone() -> None:
    model, tokenizer = checkpoint.load(FOLDERS / "lynx-moe-deep")
    asked = problems("code", "test", 32, 11)
    answers = complete(model, tokenizer, [problem.prompt for problem in asked])
    heads = [problem.prompt.partition("(")[0] for problem in asked]
    renamed = [head + "(" + a.partition("(")[2] for head, a in zip(heads, answers, strict=True)]
    assert sum(map(is_correct, asked, answers)) < 16
    assert sum(map(is_correct, asked, renamed)) >= 30
