"""Reward models: learnt as trl learns them, in transformers' layout, scored as transformers scores."""

import json

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForSequenceClassification

import nbllm as nb
from nbllm.core.errors import DataError, UserError, WeightsError
from nbllm.finetuning import METHODS
from nbllm.finetuning.alignment.reward_model import with_score_head
from nbllm.models.loading import load_model
from nbllm.training.config import TrainConfig
from nbllm.training.objective import make_objective

SMALL = {"num_layers": 2, "hidden_size": 32, "num_heads": 2, "max_positions": 64, "seed": 3}
FAMILIES = {
    "llama": {"num_kv_heads": 1}, "gpt2": {}, "qwen2": {}, "opt": {}, "gpt_neox": {}, "bloom": {}, "gptj": {},
    "phi": {}, "gemma2": {}, "mixtral": {}, "bert": {}, "roberta": {},
    "albert": {"embedding_size": 16, "num_layer_groups": 1},
}  # fmt: skip
ROWS = [
    {"prompt": [{"role": "user", "content": f"Say {word}"}], "chosen": word * 2, "rejected": f"No {word}!"}
    for word in ("one", "two", "six", "ten", "red", "bad")
]
SETTINGS = {
    "batch_size": 2, "sequence_length": 48, "checkpoint_interval": 4, "sample_interval": 0, "lr": 1e-2,
    "precision": "float32", "num_threads": 1, "validation_interval": 4, "device": "cpu",
}  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_saved_it_scores_in_transformers_as_here_and_opens_again(plain_tokenizer, tmp_path, family):
    lm = nb.LM.new(family, tokenizer=plain_tokenizer, **{**SMALL, **FAMILIES[family]})
    reward = with_score_head(lm)
    if reward.model.score.bias is not None:
        torch.nn.init.normal_(reward.model.score.bias)
    texts = ["It is a list of numbers.", "No.", "That is how a function returns its value."]
    found = torch.tensor(reward.reward(texts))
    reward.save(tmp_path / "model")
    theirs = AutoModelForSequenceClassification.from_pretrained(tmp_path / "model").eval()
    assert theirs.num_labels == 1 and type(theirs).__name__.endswith("ForSequenceClassification")
    for text, score in zip(texts, reward.reward(texts), strict=True):
        bounds = nb.finetuning.alignment.preference_rows.encode_whole(
            plain_tokenizer, text, both_directions=lm.config.network == "encoder"
        )
        ids = torch.tensor([bounds])
        assert float(theirs(ids).logits.detach()) == pytest.approx(score, abs=1e-5)
    theirs.save_pretrained(tmp_path / "again")
    lm.tokenizer.save_pretrained(tmp_path / "again")
    again = nb.load(tmp_path / "again")
    assert again.config.score_head and again.model.can >= {"reward"}
    torch.testing.assert_close(torch.tensor(again.reward(texts)), found)


def test_padding_is_not_scored(plain_tokenizer, tmp_path):
    """A batch in transformers, padded by its tokenizer, has the same scores."""
    reward = with_score_head(nb.LM.new("llama", tokenizer=plain_tokenizer, **SMALL))
    reward.save(tmp_path / "model")
    theirs = AutoModelForSequenceClassification.from_pretrained(tmp_path / "model").eval()
    texts = ["No.", "It is a list of numbers, and more than that."]
    end = plain_tokenizer.eos_token
    batch = plain_tokenizer([f"{end}{text}{end}" for text in texts], padding=True, return_tensors="pt")
    torch.testing.assert_close(
        torch.tensor(reward.reward(texts)), theirs(**batch).logits[:, 0].detach(), atol=1e-5, rtol=1e-5
    )


def test_its_loss_and_gradients_are_trls(trl, plain_tokenizer, pairs, tmp_path):
    reward = with_score_head(nb.LM.new("llama", tokenizer=plain_tokenizer, **SMALL))
    config = TrainConfig(
        objective="reward",
        objective_settings={"center": 0.05},
        sequence_length=64,
        precision="float32",
        device="cpu",
    )
    rows = [{**row, "margin": margin} for row, margin in zip(pairs, (0.5, 0.0, 1.5), strict=True)]
    store = METHODS["reward"]().prepare(rows, reward, config).store
    objective = make_objective(config, plain_tokenizer)
    columns = store.take([0, 1, 2])
    loss, count = objective.loss(reward.model, objective.batch(columns, np.random.default_rng(0)))
    (loss / count).backward()
    reward.save(tmp_path / "model")
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "model")
    arguments = trl.RewardConfig(
        output_dir=str(tmp_path), report_to="none", use_cpu=True, bf16=False, disable_tqdm=True,
        center_rewards_coefficient=0.05,
    )  # fmt: skip
    trainer = trl.RewardTrainer(
        model=model, args=arguments, processing_class=plain_tokenizer, train_dataset=Dataset.from_list(rows)
    )
    places = torch.arange(64)
    tokens = torch.cat([torch.from_numpy(columns[name]) for name in ("chosen", "rejected")])
    lengths = torch.cat([torch.from_numpy(columns[f"{name}_length"]) for name in ("chosen", "rejected")])
    mask = places < lengths[:, None]
    tokens = torch.where(mask, tokens, plain_tokenizer.pad_token_id)
    batch = {"input_ids": tokens, "attention_mask": mask.long(), "margin": torch.tensor([0.5, 0.0, 1.5])}
    model.eval()
    other = trainer.compute_loss(model, batch)
    assert float(other.detach()) == pytest.approx(float(loss.detach()) / count, abs=1e-5)
    other.backward()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.grad)
    model.save_pretrained(tmp_path / "gradients")
    for name, theirs in load_model(tmp_path / "gradients").named_parameters():
        ours = reward.model.get_parameter(name).grad
        torch.testing.assert_close(ours, theirs.detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", ["llama", "bert"])
@pytest.mark.parametrize("adapter", [None, nb.LoRA(rank=4)])
def test_a_run_learns_which_answers_are_better(tokenizer, tmp_path, family, adapter):
    lm = nb.LM.new(family, tokenizer=tokenizer, **SMALL)
    before = {name: value.clone() for name, value in lm.model.state_dict().items()}
    run = nb.finetune(
        lm, ROWS, method="reward", validation=ROWS, adapter=adapter, folder=tmp_path, name="reward", steps=16,
        **SETTINGS,
    ).wait(progress=False)  # fmt: skip
    _, accuracies = run.history("evaluation.reward_accuracy")
    assert accuracies[-1] == 1
    assert all(torch.equal(lm.model.state_dict()[name], value) for name, value in before.items())
    reward = nb.load(run)
    assert len(reward.adapters) == (adapter is not None)
    for row in ROWS:
        good, bad = reward.reward([
            [*row["prompt"], {"role": "assistant", "content": row[side]}] for side in ("chosen", "rejected")
        ])  # fmt: skip
        assert good > bad
    assert nb.replay(run, progress=False).identical
    further = nb.finetune(reward, ROWS, method="reward", folder=tmp_path, steps=1, **SETTINGS).wait(
        progress=False
    )
    assert further.events("step")[0]["reward_accuracy"] == 1


def test_what_has_no_score(tokenizer, lm, tmp_path):
    with pytest.raises(UserError, match="cannot reward"):
        lm.reward("a")
    with pytest.raises(UserError, match="cannot become a reward model"):
        nb.finetune(
            nb.LM.new("t5", tokenizer=tokenizer, **SMALL), ROWS, method="reward", folder=tmp_path, steps=1
        )
    reward = with_score_head(lm)
    with pytest.raises(UserError, match="cannot generate"):
        reward.generate("a")
    with pytest.raises(UserError, match="score head"):
        reward.save(tmp_path / "model.gguf")
    with pytest.warns(UserWarning, match="longer than 96 tokens"):
        reward.reward("word " * 100)
    with pytest.raises(DataError, match="nothing to train on"):
        METHODS["reward"]().prepare(
            [{"prompt": "word " * 90, "chosen": " a", "rejected": " b"}],
            reward,
            TrainConfig(sequence_length=20),
        )
    reward.save(tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    config["id2label"] = {"0": "a", "1": "b"}
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    with pytest.raises(WeightsError, match="2 labels"):
        nb.load(tmp_path / "model")
