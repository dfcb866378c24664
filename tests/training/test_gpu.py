"""A run on a GPU, where there is one."""

from __future__ import annotations

import pytest
import torch

import nbllm as nb
from nbllm.opening import load

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU"),
]


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_run_trains_pauses_rewinds_and_is_opened_on_the_cpu(
    lm, store, held_out, config, tmp_path, precision
):
    config |= {"steps": 60, "device": "cuda", "precision": precision}
    run = nb.train(lm, store, validation=held_out, folder=tmp_path, name="gpu", **config)
    run.wait(step=6, progress=False)
    run.pause()
    run.rewind(4)
    run.resume()
    run.wait(progress=False)
    assert run.state == "finished"
    losses = run.history("loss")[1]
    assert losses[-5:].mean() < losses[:5].mean()
    opened = load(run.checkpoints[-1].path)
    assert next(opened.model.parameters()).device.type == "cpu"
    for ours, stored in zip(lm.model.parameters(), opened.model.parameters(), strict=True):
        assert torch.equal(ours, stored)


def test_gpu_and_cpu_agree_on_the_first_loss(tokenizer, store, config, tmp_path):
    losses = []
    for device in ("cpu", "cuda"):
        lm = nb.LM.new(
            "gpt2", tokenizer=tokenizer, num_layers=2, hidden_size=32, num_heads=2, max_positions=64
        )
        run = nb.train(lm, store, folder=tmp_path, name=device, **{**config, "device": device})
        losses.append(run.wait(progress=False).history("loss")[1][0])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
