"""Runs that learn from rewards: what is kept of them, and that they are replayed, rewound and forked exactly."""

import pytest
import torch

import nbllm as nb
from nbllm.core.errors import RunError, UserError
from nbllm.training.train_state import TrainState
from tests.finetuning.killing import kill_and_finish

PROMPTS = ["def add", "import ", "the list", "for x in"]
SETTINGS = {
    "steps": 6, "max_new_tokens": 8, "prompts": 4, "samples": 4, "checkpoint_interval": 2, "precision": "float32",
    "num_threads": 1, "sample_interval": 0, "lr": 1e-2, "warmup_steps": 1,
}  # fmt: skip


def letters(prompt, answer):
    return float(answer.count("e"))


@pytest.fixture(scope="module")
def tokenizer():
    return nb.data.train_tokenizer(nb.data.load("pydocs").select(range(4)), vocab_size=320)


@pytest.fixture
def lm(tokenizer):
    return nb.LM.new(
        "llama", tokenizer=tokenizer, num_layers=2, hidden_size=32, num_heads=2, max_positions=64, seed=1
    )


def finetune(lm, folder, method="ppo", **settings):
    return nb.finetune(
        lm, PROMPTS, method=method, folder=folder, **{**SETTINGS, "reward": letters, **settings}
    )


def tensors(run):
    newest = max((run.path / "checkpoints").glob("step-*"))
    return {
        file.name: file.read_bytes() for file in sorted(newest.glob("*.safetensors"))
    }  # weights, optimizer, value head


@pytest.mark.parametrize("method", ["ppo", "grpo", "rloo"])
def test_a_run_reports_its_answers_and_is_replayed(lm, tmp_path, method):
    adapter = nb.LoRA(rank=4) if method == "ppo" else None
    run = finetune(lm, tmp_path, method, adapter=adapter, updates=2, minibatches=2)
    run.wait(progress=False)
    assert run.state == "finished", run.reason
    reported = {name: run.history(name)[1] for name in ("reward", "kl", "entropy", "clip_fraction", "length")}
    assert all(len(values) == 6 for values in reported.values())
    if method != "grpo":  # which reports it while it trains
        assert reported["kl"][0] == pytest.approx(0, abs=1e-4)
    assert max(abs(value) for value in reported["kl"][1:]) > 1e-4
    for step in (0, 5):
        rows = nb.finetuning.read_rollout(run.path, step)
        assert len(rows) == 16 and {row["prompt"] for row in rows} == set(PROMPTS)
        assert sum(row["reward"] for row in rows) / 16 == pytest.approx(reported["reward"][step])
        assert all(row["reward"] == row["answer"].count("e") for row in rows)
        assert sum(len(row["tokens"]) for row in rows) / 16 == pytest.approx(reported["length"][step])
        if method != "grpo":  # of which is reported what the loss has
            assert sum(row["kl"] for row in rows) / 16 == pytest.approx(reported["kl"][step], abs=1e-6)
    replayed = nb.replay(run, progress=False)
    assert replayed.identical
    assert nb.finetuning.read_rollout(replayed.run.path, 5) == rows
    with pytest.raises(RunError, match="step 9"):
        nb.finetuning.read_rollout(run.path, 9)


def test_a_rewound_run_and_a_fork_go_on_as_the_run_did(lm, tmp_path):
    whole = finetune(lm.copy(), tmp_path, name="whole")
    whole.wait(progress=False)
    rewound = finetune(lm, tmp_path, name="rewound", rules=[
        nb.rules.Rule(name="once", when="step == 5", do=(nb.rules.rewind(steps=2),), limit=1)
    ])  # fmt: skip
    rewound.wait(progress=False)
    (back,) = [each for each in rewound.events("action") if each["action"] == "rewind"]
    assert (back["outcome"], back["step"], back["args"]["to"]) == ("applied", 5, 2)
    fork = whole.fork("fork", step=4)
    fork.wait(progress=False)
    assert tensors(whole) == tensors(rewound) == tensors(fork)


@pytest.mark.slow
def test_a_killed_run_goes_on_as_if_it_had_not_been(lm, tmp_path):
    settings = {"reward": "last_number", "steps": 60, "checkpoint_interval": 15, "adapter": nb.LoRA(rank=2)}
    settings |= {"updates": 1, "samples": 2, "prompts": 2}
    prompts = [{"prompt": f"{number} and ", "answer": str(number % 7)} for number in range(9)]
    run = nb.finetune(
        lm, prompts, method="ppo", name="killed", folder=tmp_path, where="process", **{**SETTINGS, **settings}
    )
    kill_and_finish(run, step=20)


def test_the_coefficient_follows_its_target(lm, tmp_path):
    run = finetune(lm, tmp_path, kl_target=1e-3, kl_horizon=16.0, kl_coefficient=0.1, lr=3e-2)
    run.wait(progress=False)
    _, coefficients = run.history("kl_coefficient")
    assert coefficients[0] == pytest.approx(0.08)  # nothing has diverged yet
    assert coefficients[-1] > coefficients[0]
    newest = max((run.path / "checkpoints").glob("step-*"))
    assert TrainState.read(newest).values["kl_coefficient"] == coefficients[-1]


def test_the_temperature_is_one_for_sampling_and_training(lm, tokenizer):
    """At a temperature of .01 the likeliest token is drawn, and has a probability of 1 for what trains, too."""
    from nbllm.finetuning.alignment.policy import evaluate
    from nbllm.finetuning.alignment.prompts import Prompt
    from nbllm.finetuning.alignment.rollouts import sample_answers

    prompts = [(Prompt(text), tokenizer(text)["input_ids"], (0,)) for text in PROMPTS]
    drawn = [
        sample_answers(lm.model, tokenizer, prompts, samples=2, max_new_tokens=6, temperature=t, seed=3)
        for t in (1e-3, 1.0)
    ]
    greedy = lm.generate(PROMPTS, temperature=0, max_new_tokens=6)
    assert drawn[0].texts[::2] == [str(text) for text in greedy]
    sure, unsure = (
        evaluate(lm.model, answers.to_batch("cpu"), t).log_probs
        for answers, t in zip(drawn, (1e-3, 1.0), strict=True)
    )
    assert float(sure.detach().mean()) > -0.2 > float(unsure.detach().mean())
    answers = drawn[1]
    whole = torch.tensor([answers.prompt_tokens[0] + answers.tokens[0]])
    expected = lm.model(whole).log_softmax(-1)[0, len(answers.prompt_tokens[0]) - 1 : -1]
    expected = expected.gather(1, torch.tensor(answers.tokens[0])[:, None])[:, 0]
    torch.testing.assert_close(unsure[0, : len(expected)], expected)


def test_bad_calls(lm, tmp_path):
    for wrong, said in (
        ({"reward": None}, "no reward"),
        ({"reward": "exact_mach"}, "exact_match"),
        ({"reward": lambda answer: 1.0}, "a prompt and an answer"),
        ({"samples": 0}, "at least 1"),
        ({"minibatches": 99}, "fewer answers"),
        ({"max_new_tokens": 60}, "no prompt"),
    ):
        with pytest.raises(UserError, match=said):
            finetune(lm, tmp_path, **wrong)
    with pytest.raises(UserError, match="samples must be at least 2"):
        finetune(lm, tmp_path, "grpo", samples=1)
    with pytest.raises(UserError, match="normalization"):
        finetune(lm, tmp_path, "grpo", normalization="none")


@pytest.mark.parametrize(
    ("reward", "said"), [(lambda p, a: 1 / 0, "ZeroDivisionError"), (lambda p, a: float("nan"), "is nan")]
)
def test_a_reward_that_fails_ends_the_run_with_its_reason(lm, tmp_path, reward, said):
    run = finetune(lm, tmp_path, reward=reward)
    with pytest.raises(RunError, match=said):
        run.wait(progress=False)
    assert run.state == "failed"


def test_answers_that_are_all_cut_are_counted_and_finite(lm, tmp_path):
    run = finetune(
        lm, tmp_path, "grpo", reward=lambda p, a: 1.0, missing_end_penalty=2.0, steps=2, max_new_tokens=1
    )
    run.wait(progress=False)
    assert run.state == "finished"
    ended, losses = run.history("ended")[1], run.history("loss")[1]
    assert max(ended) < 1 and all(abs(loss) < 1e6 for loss in losses)
    rows = nb.finetuning.read_rollout(run.path, 0)
    assert {row["score"] for row in rows if not row["ended"]} == {-1.0}
    assert {row["reward"] for row in rows} == {1.0}


@pytest.mark.parametrize("method", ["ppo", "grpo"])
def test_bfloat16(lm, tmp_path, method):
    run = finetune(lm, tmp_path, method, precision="bfloat16", adapter=nb.LoRA(rank=2), steps=3)
    run.wait(progress=False)
    assert run.state == "finished", run.reason
    assert nb.replay(run, progress=False).identical


def test_held_out_prompts_are_measured(lm, tmp_path):
    run = nb.finetune(
        lm, PROMPTS, method="grpo", reward=letters, validation=PROMPTS[:3], folder=tmp_path,
        **{**SETTINGS, "steps": 2, "validation_interval": 1},
    )  # fmt: skip
    run.wait(progress=False)
    assert run.state == "finished", run.reason
    _, rewards = run.history("evaluation.reward")
    _, losses = run.history("evaluation.loss")
    assert list(losses) == pytest.approx([-reward for reward in rewards])


def test_samples_stand_beside_the_references(lm, tmp_path):
    run = finetune(lm, tmp_path, sample_interval=3, adapter=nb.LoRA(rank=4), lr=0.3, temperature=1.0)
    run.wait(progress=False)
    samples = run.events("sample")
    assert [sample["prompt"] for sample in samples] == [*PROMPTS[:2], *PROMPTS[:2]]
    assert any(sample["reference"] != sample["text"] for sample in samples)
    with lm.adapters[0].disabled():
        for sample in samples:
            drawn = lm.generate(
                sample["prompt"], temperature=0.8, top_p=0.95, seed=sample["seed"], max_new_tokens=64,
                overflow="slide",
            )  # fmt: skip
            assert sample["reference"] == str(drawn)
    assert "The reference:" in run._repr_html_()


def test_hacking_is_answered_by_a_rule_and_replayed(lm, tmp_path):
    rule = nb.rules.reward_hacking(budget=1e-4, window=2)
    run = finetune(lm, tmp_path, "rloo", reward=lambda p, a: float(len(a)), rules=[rule], steps=10, lr=3e-2)
    run.wait(progress=False)
    done = [each for each in run.events("action") if each["actor"] == "rule:reward hacking"]
    assert done and done[0]["action"] == "set" and done[0]["args"]["kl_coefficient"] == pytest.approx(0.1)
    assert nb.replay(run, progress=False).identical
    with pytest.raises(UserError, match="reward hacking"):
        nb.train(lm, nb.data.load("pydocs").select(range(2)), rules=[rule], folder=tmp_path, steps=2)


@pytest.mark.parametrize("adapter", [nb.LoRA(rank=4, targets=("query", "value")), nb.IA3()])
def test_adapters_are_in_the_weights_while_answers_are_sampled(lm, adapter):
    from nbllm.finetuning.alignment.sampling_form import for_sampling

    lm.attach(adapter)
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in lm.adapters[0].parameters().values():
            parameter.copy_(torch.randn(parameter.shape, generator=draw) * 0.1)
    lm.model.embedding.weight.requires_grad_(True)  # as a person may have unfrozen it
    ids = torch.tensor([[3, 7, 5, 9]])
    parameters = dict(lm.model.named_parameters())
    before = {name: (each, each.detach().clone(), each.requires_grad) for name, each in parameters.items()}
    lm.model.attention_backend = "per_head"
    logits = lm.model(ids)
    with for_sampling(lm.model, lm):
        assert lm.model.attention_backend == "auto"
        assert (lm.adapters[0].state == "merged") == all(
            part.can_merge for part in lm.adapters[0].parts.values()
        )
        torch.testing.assert_close(lm.model(ids), logits)
    assert (lm.adapters[0].state, lm.model.attention_backend) == ("on", "per_head")
    after = dict(lm.model.named_parameters())
    assert after.keys() == before.keys()
    for name, (parameter, value, trained) in before.items():
        assert after[name] is parameter and torch.equal(parameter, value)
        assert parameter.requires_grad == trained
    assert torch.equal(lm.model(ids), logits)
