import pytest

import nbllm as nb
from nbllm.core.errors import DataError, UserError

PROMPTS = [{"prompt": "def add", "id": 1}, {"prompt": "import ", "id": 2}, {"prompt": "the list", "id": 3}]


@pytest.fixture(scope="module")
def lm():
    tokenizer = nb.data.train_tokenizer(nb.data.load("pydocs").select(range(4)), vocab_size=320)
    return nb.LM.new(
        "llama", tokenizer=tokenizer, num_layers=2, hidden_size=32, num_heads=2, max_positions=64, seed=1
    )


def letters(prompt, answer, id):
    return float(answer.count("e")) + id / 100


def test_the_best_answers_are_kept_and_can_be_learnt_from(lm, tmp_path, capsys):
    every = nb.finetuning.best_of_n(lm, PROMPTS, reward=letters, n=16, keep=16, max_new_tokens=12)
    best = nb.finetuning.best_of_n(lm, PROMPTS, reward=letters, n=16, max_new_tokens=12)
    assert best["prompt"] == [row["prompt"] for row in PROMPTS] and best["id"] == [1, 2, 3]
    for row in best:
        assert row["reward"] == pytest.approx(letters(row["prompt"], row["completion"], row["id"]))
        others = [other for other in every if other["id"] == row["id"]]
        assert row["reward"] == max(other["reward"] for other in others)
        assert [other["reward"] for other in others] == sorted((o["reward"] for o in others), reverse=True)
        assert len({other["completion"] for other in others}) == len(others)
    kept = nb.finetuning.best_of_n(lm, PROMPTS, reward=letters, n=16, keep=16, least=2, max_new_tokens=12)
    assert [row["reward"] for row in kept] == [row["reward"] for row in every if row["reward"] >= 2]
    assert f"{len(kept)} answers" in capsys.readouterr().out
    run = nb.finetune(lm.copy(), kept, steps=1, folder=tmp_path, sequence_length=64, sample_interval=0)
    run.wait(progress=False)
    assert run.state == "finished"


def test_conversations(lm):
    asked = [{"role": "user", "content": "How many?"}]
    best = nb.finetuning.best_of_n(lm, [asked], reward=lambda p, a: float(len(a)), n=2, max_new_tokens=4)
    assert best[0]["prompt"] == asked and best[0]["completion"][0]["role"] == "assistant"


def test_bad_calls(lm):
    for wrong in ({"n": 0}, {"n": 2, "keep": 3}, {"reward": 3}):
        with pytest.raises(UserError):
            nb.finetuning.best_of_n(lm, PROMPTS, **{"reward": letters, **wrong})
    with pytest.raises(DataError, match="No answer"):
        nb.finetuning.best_of_n(lm, PROMPTS, reward=letters, n=2, least=99, max_new_tokens=4)
