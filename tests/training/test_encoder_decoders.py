"""Encoder-decoders in the one loop: lower precision, a frozen stack, samples, checkpoints, a fork, a replay."""

import pytest
import torch

import nbllm as nb


@pytest.fixture(scope="module")
def texts():
    return nb.data.load("pydocs").select(range(8))


@pytest.fixture(scope="module")
def tokenizer(texts):
    made = nb.data.train_tokenizer(texts, vocab_size=300)
    return nb.objectives.add_tokens(made, "span_corruption", "denoising")


@pytest.mark.parametrize(
    "family, objective, precision",
    [("t5", "span_corruption", "bfloat16"), ("bart", "denoising", "float32")],
)
def test_it_is_trained_steered_opened_and_replayed(family, objective, precision, texts, tokenizer, tmp_path):
    lm = nb.LM.new(family, tokenizer=tokenizer, num_layers=2, hidden_size=32, num_heads=2, max_positions=96)
    before = {name: weight.clone() for name, weight in lm.model.named_parameters()}
    run = nb.train(
        lm, texts, objective=objective, steps=12, batch_size=2, sequence_length=40, lr=1e-2, precision=precision,
        freeze=["encoder.layers[0]"], sample_interval=6, folder=tmp_path, name="run", num_threads=1, validation=None,
        checkpoint_interval=6,
    ).wait(progress=False)  # fmt: skip
    losses = run.history("loss")[1]
    assert run.state == "finished" and losses[-1] < losses[0]
    for name, weight in lm.model.named_parameters():
        is_frozen = name.startswith("encoder.blocks.0.")
        assert torch.equal(weight, before[name].to(weight)) == is_frozen, name
    assert run.events("sample")
    opened = nb.load(run)
    assert opened.decoder_tokens == lm.decoder_tokens
    prompt = {"prompt": "def <extra_id_0>(a)", "temperature": 0, "max_new_tokens": 5}
    assert opened.generate(**prompt).tokens == lm.generate(**prompt).tokens
    assert nb.replay(run, progress=False).identical
    fork = run.fork("other", step=6, lr=1e-3).wait(progress=False)
    assert fork.state == "finished"
