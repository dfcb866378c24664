"""A run on a GPU, where there is one."""

from __future__ import annotations

import gc

import pytest
import torch

import nbllm as nb
from nbllm.distributed import OneRank, Plan
from nbllm.distributed.apply import lay_out
from nbllm.models import build, make_config
from nbllm.objectives.causal_lm import CausalLM
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


@pytest.mark.parametrize(
    "plan",
    [
        {"compile": "blocks"},
        {"activation_checkpointing": "full"},
        {"activation_checkpointing": "selective", "precision": "float16"},
        {"offload": "cpu"},
        {"offload": "cpu", "compile": "blocks", "precision": "bfloat16"},
    ],
    ids=str,
)
def test_a_plan_changes_what_is_kept_and_compiled_and_not_what_is_learned(lm, store, config, tmp_path, plan):
    losses = {}
    for name, given in {"plain": {}, "planned": plan}.items():
        settings = {**config, "device": "cuda", "steps": 8, "precision": plan.get("precision", "float32")}
        run = nb.train(lm.copy(), store, folder=tmp_path, name=name, plan=nb.Plan(**given), **settings)
        losses[name] = run.wait(progress=False).history("loss")[1]
    assert losses["planned"] == pytest.approx(losses["plain"], rel=1e-3)


def test_of_an_offloaded_model_the_gpu_holds_two_blocks():
    config = make_config(
        "llama", vocab_size=1024, num_layers=8, hidden_size=512, num_heads=8, max_positions=256
    )
    ids = torch.randint(config.vocab_size, (1, 65), generator=torch.Generator().manual_seed(0)).cuda()
    batch = {"inputs": ids[:, :-1].contiguous(), "targets": ids[:, 1:].contiguous()}
    found, objective = {}, CausalLM()
    for offload in ("none", "cpu"):
        network = build(config).to("cuda" if offload == "none" else "cpu")
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated() if offload == "cpu" else 0
        layout = lay_out(network, Plan(offload=offload), OneRank(), dtype=torch.bfloat16, device="cuda")
        held = torch.cuda.memory_allocated() - before
        loss = layout.forward_backward([batch, batch], lambda *given: (*objective.loss(*given), None), 128.0)
        peak = torch.cuda.max_memory_allocated() - before
        gradients = {name: each.grad.cpu() for name, each in layout.parameters().items()}
        found[offload] = (loss, gradients)
        del network, layout
        gc.collect()
    report = Plan(offload="cpu").explain(config, 1, batch_size=1, sequence_length=64, accumulation=2)
    kept = report.largest.at("between steps")
    assert kept <= held < 1.5 * kept  # the tables of rotary positions, and what the allocator rounds up
    assert peak < 1.5 * report.peak < report.largest.offloaded / 4
    assert found["cpu"][0] == pytest.approx(found["none"][0], rel=1e-4)
    for name, expected in found["none"][1].items():
        torch.testing.assert_close(found["cpu"][1][name], expected, rtol=0.02, atol=1e-4, msg=name)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there are not two GPUs")
@pytest.mark.parametrize(
    "plan", [{}, {"zero": 3}, {"tensor": 2, "sequence": True}, {"pipeline": 2}, {"context": 2}], ids=str
)
def test_two_gpus_train_as_one(lm, store, config, tmp_path, plan):
    settings = {**config, "device": "cuda", "steps": 8, "precision": "float32"}
    two = nb.Plan(**plan).sized(2)
    alone = nb.train(
        lm.copy(), store, folder=tmp_path, name="one", **{**settings, "accumulation": 4 * (two.data or 1)}
    )
    run = nb.train(
        lm.copy(), store, folder=tmp_path, name="two", where=nb.Launch(processes=2), plan=nb.Plan(**plan),
        **{**settings, "accumulation": 4},
    )  # fmt: skip
    losses = [each.wait(progress=False).history("loss")[1] for each in (alone, run)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)
