"""Runs of two ranks under a plan: trained, steered by rules, saved, opened and taken up again like any other."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import nbllm as nb
from nbllm.core.errors import UserError
from nbllm.runs.commands import send
from nbllm.runs.run import Run
from nbllm.training.launcher import Launcher

PLANS = {
    "data": {},
    "zero 1": {"zero": 1},
    "zero 2": {"zero": 2},
    "zero 3": {"zero": 3, "activation_checkpointing": "full"},
    "sequence": {"tensor": 2, "sequence": True},
    "pipeline": {"pipeline": 2},
    "context": {"context": 2, "activation_checkpointing": "selective"},
}
SETTINGS = {
    "steps": 12, "batch_size": 2, "sequence_length": 32, "lr": 3e-3, "validation_interval": 6,
    "validation_tokens": 200, "sample_interval": 6, "sample_tokens": 4, "checkpoint_interval": 4,
    "precision": "float32", "num_threads": 1, "clip": 0.5,
}  # fmt: skip


def rules():
    Rule, do = nb.rules.Rule, nb.rules
    return [
        Rule(name="back", when="step == 9", do=do.rewind(), limit=1),
        Rule(name="lower", when="step == 10", do=do.scale(lr=0.5)),
    ]


@pytest.fixture(scope="module")
def prepare(texts, tokenizer, tmp_path_factory):
    """Make a run's directory without starting it."""
    folder = tmp_path_factory.mktemp("runs")

    def prepare(name, **changes):
        shape = {"num_layers": 2, "hidden_size": 32, "num_heads": 2, "max_positions": 64}
        lm = nb.LM.new("gpt2", tokenizer=tokenizer, seed=1, **shape)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Launcher, "start", lambda self, path: Run(path))
            held = texts.select(range(8, 12))
            settings = {"validation": held, "folder": folder, "name": name, **SETTINGS, **changes}
            return nb.train(lm, texts.select(range(8)), **settings).path

    return prepare


def train(path):
    """Train a run as a rank of the pool."""
    from nbllm.distributed import ProcessGroup
    from nbllm.training import Trainer

    trainer = Trainer(Path(path), where="process", ranks=ProcessGroup())
    trainer.run()
    return trainer.state.step


def train_alone(path):
    from nbllm.training import Trainer

    Trainer(Path(path), where="process").run()
    return Run(path)


@pytest.fixture(scope="module")
def alone(prepare):
    """The same steps of one process."""
    return train_alone(prepare("alone", accumulation=2, rules=rules()))


@pytest.mark.parametrize("settings", PLANS.values(), ids=PLANS)
def test_a_run_under_a_plan_is_that_of_one_process(two_ranks, prepare, alone, settings):
    name = "-".join(map(str, ["plan", *settings.values()]))
    plan = nb.Plan(**settings)
    # Ranks that hold one replica together read the batches of a step one after the other, as one process does.
    accumulation = plan.model_ranks
    path = prepare(name, where=nb.Launch(processes=2), plan=plan, accumulation=accumulation, rules=rules())
    two_ranks(train, str(path))
    run = Run(path)
    assert run.state == "finished"
    if plan.pipeline > 1:
        timeline = nb.distributed.pipeline_timeline(run)
        assert (timeline.ranks, timeline.micro_batches, len(timeline.intervals)) == (2, 2, 8)
    for metric in ("loss", "grad_norm"):
        assert run.history(metric)[1] == pytest.approx(alone.history(metric)[1], rel=1e-3)
    assert [a.action for a in run.timeline.actions] == [a.action for a in alone.timeline.actions]
    measured, expected = (each.events("evaluation")[-1] for each in (run, alone))
    assert measured["tokens"] == expected["tokens"]
    assert measured["bits_per_byte"] == pytest.approx(expected["bits_per_byte"], rel=1e-3)
    assert run.events("sample")[-1]["text"] == alone.events("sample")[-1]["text"]
    weights = dict(nb.load(run).model.named_parameters())
    for name, weight in nb.load(alone).model.named_parameters():
        torch.testing.assert_close(weights[name], weight, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("settings", [{"zero": 3}, {"pipeline": 2, "schedule": "zero_bubble"}], ids=str)
def test_a_run_is_taken_up_under_a_plan_by_its_checkpoint(two_ranks, prepare, settings):
    plan = nb.Plan(**settings)
    shared = {
        "where": nb.Launch(processes=2),
        "plan": plan,
        "accumulation": plan.pipeline,
        "freeze": ["blocks.0"],
    }
    whole, parts = (
        prepare(f"{name}-{plan.zero}", **shared, **changes)
        for name, changes in (("whole", {}), ("parts", {"rules": [stop_at(7)]}))
    )
    two_ranks(train, str(whole))
    assert two_ranks(train, str(parts)) == [7, 7]
    assert two_ranks(train, str(parts)) == [12, 12]
    digests = [Run(path).events("end")[-1]["digest"] for path in (whole, parts)]
    assert digests[0] == digests[1]


def test_both_ranks_are_profiled_in_the_same_steps(two_ranks, prepare):
    settings = {"validation_interval": 0, "sample_interval": 0, "checkpoint_interval": 0, "steps": 4}
    path = prepare("profiled", where=nb.Launch(processes=2), plan=nb.Plan(data=2), **settings)
    send(path, "profile", {"steps": 2})
    two_ranks(train, str(path))
    (profile,) = Run(path).profiles
    assert [(each.rank, each.steps) for each in profile.ranks] == [(0, 2), (1, 2)]
    for each in profile.ranks:
        assert each.share("communication") > 0 and each.share("computing") > 0
        assert 0 <= each.exposed <= each.seconds
    assert len(profile.traces) == 2


def stop_at(step):
    return nb.rules.Rule(name="stop", when=f"step == {step}", do=nb.rules.stop(), limit=1)


def test_an_adapter_is_refused_where_the_model_is_shared_out(texts, tokenizer, tmp_path):
    lm = nb.LM.new("gpt2", tokenizer=tokenizer, num_layers=1, hidden_size=16, num_heads=2, max_positions=32)
    lm.attach(nb.LoRA(rank=2))
    with pytest.raises(UserError, match="each hold all"):
        nb.train(lm, texts, folder=tmp_path, where=nb.Launch(processes=2), plan=nb.Plan(zero=3))


def overflow_on_rank_one(path):
    """Train as a rank of the pool; in the third step a gradient of rank 1, and of no other, is infinite."""
    import torch.distributed as dist

    from nbllm.distributed import ProcessGroup
    from nbllm.training import Trainer

    trainer = Trainer(Path(path), where="process", ranks=ProcessGroup())
    step = trainer._step

    def too_large(module, inputs, output):
        if output.requires_grad:
            output.register_hook(lambda gradient: gradient * float("inf"))

    def one_step():
        hit = trainer.step == 2 and dist.get_rank() == 1
        hook = trainer.stepper.network.embedding.register_forward_hook(too_large) if hit else None
        step()
        if hook is not None:
            hook.remove()

    trainer._step = one_step
    trainer.run()
    return trainer.state.loss_scale, trainer.state.scaled_steps, trainer.state.bad_steps


@pytest.mark.parametrize("plan", [{}, {"zero": 3}], ids=["data", "zero 3"])
def test_an_overflow_on_one_rank_skips_the_step_on_all(prepare, two_ranks, plan):
    settings = {"steps": 6, "precision": "float16", "validation_interval": 0, "sample_interval": 0}
    path = prepare(
        f"half-{plan.get('zero', 0)}", plan=nb.Plan(**plan), where=nb.Launch(processes=2), **settings
    )
    first, second = two_ranks(overflow_on_rank_one, path)
    assert first == second  # the same scale, steps without overflow, and steps that were bad
    assert first[1:] == (3, 0)
    run = Run(path)
    assert run.state == "finished"
    finite = [value == value and abs(value) < float("inf") for value in run.history("grad_norm")[1]]
    assert finite == [True, True, False, True, True, True]
    assert all(weight.isfinite().all() for weight in nb.load(run).model.parameters())
