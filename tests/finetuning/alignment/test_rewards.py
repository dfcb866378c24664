import pytest

import nbllm as nb
from nbllm.core.errors import RunError, UserError
from nbllm.finetuning.alignment.prompts import Prompt
from nbllm.finetuning.alignment.rewards import REWARDS, name_of, reward_named
from nbllm.finetuning.alignment.rollouts import Answers


def answers(*texts, **fields):
    prompts = [Prompt("How many?", fields) for _ in texts]
    return Answers(prompts, [[1]] * len(texts), [[2]] * len(texts), [True] * len(texts), list(texts))


@pytest.mark.parametrize(
    ("name", "text", "answer", "expected"),
    [
        ("exact_match", " 12\n", 12, 1), ("exact_match", "12.", "12", 0),
        ("last_number", "3 + 4 is 1,007.50 dollars", "#### 1007.5", 1), ("last_number", "about -3", "3", 0),
        ("last_number", "none", "3", 0), ("last_number", "3", "none", 0),
    ],
)  # fmt: skip
def test_verifiable_rewards(name, text, answer, expected):
    assert REWARDS[name](None, text, answer) == expected
    assert reward_named(name)(answers(text, answer=answer)).tolist() == [expected]


def test_a_function_is_given_the_fields_that_it_names():
    seen = []

    def reward(prompt, answer, unit, *, scale=2.0):
        seen.append((prompt, answer, unit, scale))
        return len(answer)

    name = name_of(reward)
    assert reward_named(name)(answers("a", "bcd", unit="kg", other=1)).tolist() == [1, 3]
    assert seen == [("How many?", "a", "kg", 2.0), ("How many?", "bcd", "kg", 2.0)]
    with pytest.raises(RunError, match="unit"):
        reward_named(name)(answers("a"))


def test_a_function_of_another_kernel_is_asked_for():
    with pytest.raises(RunError, match="elsewhere.reward") as error:
        reward_named("elsewhere.reward")
    assert "register_reward" in str(error.value)
    with pytest.raises(UserError, match="must be a function"):
        nb.finetuning.register_reward(3)


@pytest.fixture(scope="module")
def reward_model():
    from nbllm.finetuning.alignment.reward_model import with_score_head

    tokenizer = nb.data.train_tokenizer(nb.data.load("pydocs").select(range(4)), vocab_size=320)
    lm = nb.LM.new(
        "llama", tokenizer=tokenizer, num_layers=1, hidden_size=32, num_heads=2, max_positions=64, seed=1
    )
    return with_score_head(lm, seed=2)


def test_a_reward_model_scores_texts_and_conversations(reward_model, tmp_path):
    name = name_of(reward_model)
    assert name == name_of(reward_model) and reward_model.copy().reward("a") == reward_model.reward("a")
    given = answers("Two.", "Three of them.")
    given.prompts[1] = Prompt([{"role": "user", "content": "How many?"}])
    asked = [
        "How many?Two.",
        [{"role": "user", "content": "How many?"}, {"role": "assistant", "content": "Three of them."}],
    ]
    assert reward_named(name)(given).tolist() == pytest.approx(reward_model.reward(asked))
    reward_model.save(tmp_path / "model")
    for path in (tmp_path / "model", str(tmp_path / "model")):
        assert reward_named(name_of(path))(given).tolist() == pytest.approx(reward_model.reward(asked))


def test_a_model_that_scores_nothing_is_no_reward():
    tokenizer = nb.data.train_tokenizer(nb.data.load("pydocs").select(range(2)), vocab_size=320)
    lm = nb.LM.new("llama", tokenizer=tokenizer, num_layers=1, hidden_size=32, num_heads=2, max_positions=64)
    with pytest.raises(UserError, match="cannot reward"):
        name_of(lm)
    with pytest.raises(UserError, match="reward"):
        name_of("no/such/folder")
