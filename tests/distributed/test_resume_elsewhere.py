"""Runs taken up on another number of processes, and by another plan."""

from __future__ import annotations

import shutil

import pytest
import torch

import nbllm as nb
from nbllm.core.errors import UserError
from nbllm.models.tensor_shards import is_sharded
from nbllm.runs.checkpoint import checkpoints
from nbllm.runs.run import Run
from nbllm.training.digests import state_digest
from nbllm.training.launcher import Launcher

SETTINGS = {
    "steps": 5,
    "batch_size": 2,
    "sequence_length": 32,
    "lr": 3e-3,
    "precision": "float32",
    "num_threads": 1,
    "schedule": "constant",
    "warmup_steps": 0,
    "checkpoint_interval": 0,
}


# Else AdamW makes much of the rounding of gradients near zero.
COARSE = {"optimizer": "adamw", "eps": 1e-5}


def train(path, until=None, plan=None):
    """Train a run as a rank of a pool, or alone; return which sequences were drawn at which step."""
    import torch.distributed as dist

    from nbllm.distributed.process_group import ProcessGroup
    from nbllm.training.trainer import Trainer

    class Watched(Trainer):
        def due(self):
            if self.step == until:
                self.stop_reason = "enough"
            return super().due()

        def _step(self):
            draw, step = self.stepper.source.draw, self.step

            def noting(position, count):
                drawn.setdefault(step, []).extend(range(position, position + count))
                return draw(position, count)

            self.stepper.source.draw = noting
            super()._step()
            self.stepper.source.draw = draw

    drawn = {}
    several = dist.is_initialized() and dist.get_world_size() > 1
    ranks = {"ranks": ProcessGroup()} if several else {}
    Watched(path, where="process", plan=plan, **ranks).run()
    return drawn


@pytest.fixture(scope="module")
def begun(texts, tokenizer, tmp_path_factory):
    """Return a function that makes a run's folder, or a copy of one that was made; nobody trains it."""
    folder = tmp_path_factory.mktemp("runs")
    lm = nb.LM.new(
        "llama", tokenizer=tokenizer, num_layers=2, hidden_size=32, num_heads=4, max_positions=64, seed=1
    )
    made = {}

    def begun(to, processes=1, **changes):
        key = (processes, *changes.items())
        if key not in made:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(Launcher, "start", lambda self, path: Run(path))
                where = nb.Launch(processes=processes) if processes > 1 else "thread"
                settings = {**SETTINGS, **changes}
                made[key] = nb.train(
                    lm, texts, folder=folder, name=f"run{len(made)}", where=where, **settings
                ).path
        return shutil.copytree(made[key], to)

    return begun


def named(value):
    """Return what tells the cases of a test apart."""
    if isinstance(value, dict):
        return value["optimizer"]
    usual = nb.Plan().to_dict()
    return (
        " ".join(f"{k}={v}" for k, v in value.to_dict().items() if v != usual[k]) if value else "one process"
    )


def weights(path):
    return {name: each.detach() for name, each in nb.load(path).model.named_parameters()}


def differ(one, other):
    one, other = weights(one), weights(other)
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).abs().max()) for name in one)


def together(drawn, skip=0):
    """Return the sequences of each step over all ranks, which are those of the padding too."""
    steps = {step for each in drawn for step in each}
    return {step: sorted(i for each in drawn for i in each.get(step, [])[skip:]) for step in steps}


def test_batches_of_a_step_go_on_with_the_same_sequences(begun, two_ranks, four_ranks, tmp_path):
    whole = begun(tmp_path / "whole", 4)
    expected = together(four_ranks(train, whole))
    assert expected == {step: list(range(8 * step, 8 * step + 8)) for step in range(5)}
    four = begun(tmp_path / "four", 4)
    assert together(four_ranks(train, four, until=3)) == {step: expected[step] for step in range(3)}
    shutil.copytree(four, tmp_path / "one")
    assert together(two_ranks(train, four)) == {step: expected[step] for step in (3, 4)}
    assert together([train(tmp_path / "one")]) == {step: expected[step] for step in (3, 4)}
    for path in (four, tmp_path / "one"):
        assert Run(path).step == 5
        assert differ(path, whole) < 1e-5


def test_batches_that_do_not_go_round_are_padded(begun, two_ranks, tmp_path):
    whole, run = (begun(tmp_path / name, accumulation=3) for name in ("whole", "run"))
    train(whole)
    drawn = two_ranks(train, run)
    assert drawn[0][0] == [0, 1, 4, 5]
    assert drawn[1][0] == [2, 3, 0, 1]  # the last two count for nothing
    assert differ(run, whole) < 1e-5
    ours, theirs = (Run(path).history("loss")[1] for path in (run, whole))
    assert ours == pytest.approx(theirs, rel=1e-5)


def test_a_batch_is_divided_where_there_are_more_ranks_than_batches(begun, two_ranks, tmp_path):
    whole, run = (begun(tmp_path / name) for name in ("whole", "run"))
    train(whole)
    assert [each[0] for each in two_ranks(train, run)] == [[0], [1]]
    assert differ(run, whole) < 1e-5


def test_shares_that_a_pipeline_cannot_have_are_refused():
    from nbllm.training.step import Stepper

    class Layout:
        data_rank, data_size, plan, network = 0, 2, nb.Plan(data=2, pipeline=2), None

    class Config:
        batch_size = 2

    class Source:
        def __init__(self):
            self.layout, self.inner = Layout, None

    stepper = Stepper(None, Source(), None, Config, "cpu")
    stepper.batch = lambda *args: {}
    assert len(stepper._batches(0, 8)) == 2
    with pytest.raises(UserError, match="2 data ranks cannot share 3 batches of a step evenly"):
        stepper._batches(0, 6)


@pytest.mark.parametrize(
    ("first", "second", "optimizer"),
    [
        (nb.Plan(zero=3), nb.Plan(tensor=2), COARSE),
        (nb.Plan(tensor=2), nb.Plan(zero=2), {"optimizer": "adafactor"}),
        (nb.Plan(pipeline=2), nb.Plan(), COARSE),
        (nb.Plan(zero=1), nb.Plan(pipeline=2), COARSE),
        (nb.Plan(zero=3), None, {"optimizer": "muon"}),
        (None, nb.Plan(zero=3), {"optimizer": "adamw_8bit"}),
    ],
    ids=named,
)
def test_another_plan(begun, two_ranks, tmp_path, first, second, optimizer):
    whole = begun(tmp_path / "whole", accumulation=2, **optimizer)
    train(whole)
    run = begun(tmp_path / "run", accumulation=2, **optimizer)
    for plan, until in ((first, 3), (second, None)):
        if plan is None:
            train(run, until)
        else:
            two_ranks(train, run, until, plan)
        assert is_sharded(checkpoints(run)[-1].path) == (plan is not None)
    assert differ(run, whole) < 1e-5
    assert Run(run).events("step")[-1]["loss"] == pytest.approx(
        Run(whole).events("step")[-1]["loss"], rel=1e-5
    )


def test_it_is_bit_identical_when_it_is_taken_up_on_the_same_ranks(begun, two_ranks, tmp_path):
    whole, run = (begun(tmp_path / name, 2) for name in ("whole", "run"))
    two_ranks(train, whole)
    two_ranks(train, run, until=2)
    two_ranks(train, run)
    assert torch.equal(*(torch.cat([p.flatten() for p in weights(path).values()]) for path in (whole, run)))
    assert state_digest(checkpoints(run)[-1].path) == state_digest(checkpoints(whole)[-1].path)
    assert Run(run).events("end")[-1]["digest"] == Run(whole).events("end")[-1]["digest"] is not None


def test_adapters(begun, two_ranks, tmp_path, texts):
    lm = nb.load(begun(tmp_path / "base"))
    lm.attach(nb.LoRA(rank=2))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Launcher, "start", lambda self, path: Run(path))
        paths = [
            nb.train(lm, texts, folder=tmp_path, name=name, **{**SETTINGS, "accumulation": 2}).path
            for name in ("whole", "run")
        ]
    train(paths[0])
    two_ranks(train, paths[1], until=3)
    newest = checkpoints(paths[1])[-1].path
    assert not is_sharded(newest)  # the model's own weights are the run's base
    assert nb.load(paths[1]).adapters
    train(paths[1])
    assert differ(*paths) < 1e-5


def test_attach_takes_another_place_and_plan(begun, tmp_path):
    whole, path = (begun(tmp_path / name, accumulation=2, **COARSE) for name in ("whole", "run"))
    train(whole)
    train(path, until=2)
    with pytest.raises(UserError, match="tensor=2 needs a multiple of 2 processes"):
        nb.attach(path, plan=nb.Plan(tensor=2)).resume()
    with pytest.raises(UserError, match="cannot be split evenly over 3 ranks"):
        nb.attach(path, where=nb.Launch(processes=3), plan=nb.Plan(tensor=3)).resume()
    run = nb.attach(path, where=nb.Launch(processes=2), plan=nb.Plan(zero=3))
    run.resume()
    run.wait(progress=False)
    assert is_sharded(run.checkpoints[-1].path)
    assert differ(path, whole) < 1e-5
    forks = [
        nb.attach(each, where="thread").fork("fork", step=5, steps=6).wait(progress=False)
        for each in (path, whole)
    ]
    assert differ(*(each.path for each in forks)) < 1e-5
    assert forks[0].record["plan"] == nb.Plan().to_dict()
