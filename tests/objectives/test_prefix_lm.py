"""Prefix language modelling: where a text is divided, and that it is what the prefix decoder computes."""

import numpy as np
import torch
import torch.nn.functional as F

import nbllm as nb
from nbllm.objectives import PrefixLM


def test_the_split_is_uniform_and_nothing_is_lost(tokenizer, plain):
    objective, windows = PrefixLM.for_tokenizer(tokenizer), plain(8000, 9)
    batch = {name: each.numpy() for name, each in objective.batch(windows, np.random.default_rng(0)).items()}
    lengths = batch["mask"].sum(1)
    counts = np.bincount(lengths, minlength=10)
    assert counts[0] == counts[9] == 0 and counts[1:9].min() > 900 and counts[1:9].max() < 1100
    for row, length in enumerate(lengths[:50]):
        targets = batch["targets"][row]
        assert batch["inputs"][row, :length].tolist() == windows[row, :length].tolist()
        assert targets[targets != -100].tolist() == windows[row, length:].tolist()
        assert batch["decoder_inputs"][row, 0] == tokenizer.pad_token_id


def test_the_loss_is_torchs_cross_entropy_of_the_rest(tokenizer, plain):
    lm = nb.LM.new(
        "gpt2", tokenizer=tokenizer, network="prefix_decoder", num_layers=2, hidden_size=32, num_heads=2,
        max_positions=32,
    )  # fmt: skip
    objective, windows = PrefixLM.for_tokenizer(tokenizer), plain(6, 17)
    batch = objective.batch(windows, np.random.default_rng(3))
    loss, count = objective.loss(lm.model, batch)
    lengths = batch["mask"].sum(1)
    expected, total = 0.0, 0
    for row, length in enumerate(lengths.tolist()):
        ids = torch.from_numpy(windows[row : row + 1])
        logits = lm.model(ids[:, :-1], prefix_lengths=torch.tensor([length]))[0, length - 1 :]
        expected += float(F.cross_entropy(logits, ids[0, length:], reduction="sum").detach())
        total += 17 - length
    assert count == total
    torch.testing.assert_close(loss.detach(), torch.tensor(expected), rtol=1e-5, atol=1e-4)
