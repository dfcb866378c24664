"""Supervised fine-tuning of encoder-decoders: the loss of transformers, and a run."""

import numpy as np
import pytest
import torch
from transformers import AutoModelForSeq2SeqLM

import nbllm as nb
from nbllm.core.errors import DataError, UserError
from nbllm.finetuning import prepare
from nbllm.objectives import OBJECTIVES

PAIRS = [
    {"prompt": "It is", "completion": "a list of lists."},
    {"instruction": "Why?", "input": "", "output": "Because.", "weight": 2},
]


@pytest.fixture
def pair_lm(tokenizer):
    return nb.LM.new(
        "t5", tokenizer=tokenizer, num_layers=2, hidden_size=32, num_heads=2, max_positions=64, seed=2
    )


def test_the_loss_is_transformers(pair_lm, tokenizer, tmp_path):
    store = prepare(PAIRS, tokenizer, length=32, pairs=True).store
    start = pair_lm.decoder_tokens.decoder_start_token_id
    objective = OBJECTIVES["sft_text_to_text"](start, tokenizer.eos_token_id)
    batch = objective.batch(store.take([0, 1]), np.random.default_rng(0))
    loss, count = objective.loss(pair_lm.model, batch)
    pair_lm.save(tmp_path / "model")
    theirs = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "model").eval()
    total = weights = 0.0
    for (asked, answer), weight in zip(
        (("It is", "a list of lists."), ("Why?", "Because.")), (1, 2), strict=True
    ):
        ids, labels = (
            torch.tensor([[*tokenizer(text)["input_ids"], tokenizer.eos_token_id]])
            for text in (asked, answer)
        )
        decoder = torch.cat([torch.tensor([[start]]), labels[:, :-1]], 1)
        logits = theirs(input_ids=ids, decoder_input_ids=decoder).logits[0]
        total += weight * float(
            torch.nn.functional.cross_entropy(logits, labels[0], reduction="sum").detach()
        )
        weights += weight * labels.shape[1]
    assert count == pytest.approx(weights)
    assert float(loss.detach()) / count == pytest.approx(total / weights, abs=1e-5)


def test_a_run_learns_to_answer(pair_lm, tmp_path):
    data = [{"prompt": f"Say {word}", "completion": word * 2} for word in ("one", "two", "six")]
    run = nb.finetune(
        pair_lm, data, validation=data, folder=tmp_path, steps=120, batch_size=3, sequence_length=24, lr=1e-2,
        sample_interval=0, precision="float32", num_threads=1,
    )  # fmt: skip
    run.wait(progress=False)
    _, losses = run.history("evaluation.loss")
    assert run.state == "finished" and losses[-1] < 1
    assert str(pair_lm.generate("Say six", max_new_tokens=8, temperature=0)) == "sixsix"


def test_what_an_encoder_decoder_cannot_be_trained_on_is_said(tokenizer, pair_lm, tmp_path):
    made = prepare([*PAIRS, "A text without a question."], tokenizer, length=32, pairs=True)
    assert made.left_out == {"There is no question for an encoder to read.": ("2",)}
    with pytest.raises(DataError, match="is not predicted"):
        prepare(PAIRS, tokenizer, length=32, pairs=True, train_on="everything")
    turns = [
        {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c"}, {"role": "assistant", "content": "d"},
    ]  # fmt: skip
    assert prepare([turns], tokenizer, length=32, pairs=True).num_examples == 2
    assert prepare([turns], tokenizer, length=32, pairs=True, train_on="answer").num_examples == 1
    with pytest.raises(UserError, match="learns from examples"):
        nb.train(pair_lm, ["text " * 99], objective="sft_text_to_text", folder=tmp_path)
