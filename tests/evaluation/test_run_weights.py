"""A model and the run that is said to have made it: their figures must not be mixed up."""

import shutil

import pytest
import torch

import nbllm as nb
from nbllm.core.errors import RunError, UserError, WeightsError
from nbllm.evaluation.run_weights import weights_step
from nbllm.lm import LM

TINY = {
    "steps": 6, "batch_size": 2, "sequence_length": 32, "lr": 1e-2, "checkpoint_interval": 2, "num_threads": 1,
    "sample_interval": 0, "keep_checkpoints": 9, "precision": "float32",
}  # fmt: skip


@pytest.fixture(scope="module")
def trained(tokenizer, texts, tmp_path_factory):
    """A run of 6 steps, its model, and a fork of it with another learning rate."""
    folder = tmp_path_factory.mktemp("trained")
    lm = LM.new("llama", tokenizer=tokenizer, num_layers=1, hidden_size=16, num_heads=2, max_positions=64)
    run = nb.train(lm, texts, name="demo", folder=folder / "runs", **TINY)
    run.wait(progress=False)
    child = run.fork("child", step=2, lr=1e-3)
    child.wait(progress=False)
    return lm, run, child


def measured(*arguments, **options):
    return nb.evaluate(*arguments, progress=False, **options)


def test_a_run_is_measured_by_its_own_weights(trained, texts):
    lm, run, child = trained
    own = measured(lm, data=texts, run=run)
    of_child = measured(child, data=texts)
    assert own.metric("bits per byte").value == measured(run, data=texts).metric("bits per byte").value
    assert of_child.metric("bits per byte").value != own.metric("bits per byte").value
    assert of_child.title.endswith("the run child")
    expected = measured(nb.load(child.checkpoints[-1].path), data=texts).metric("bits per byte")
    assert of_child.metric("bits per byte") == expected
    assert "of the run child at step 6" in str(of_child)


def test_another_runs_weights_are_refused(trained, texts):
    lm, run, child = trained
    with pytest.raises(UserError, match=r"not have the weights of the run 'child'[\s\S]*nb\.evaluate\(run\)"):
        measured(lm, data=texts, run=child)
    with pytest.raises(UserError, match="not have the weights of the run 'demo'"):
        measured(nb.load(child), data=texts, run=run)
    changed = nb.load(run)
    with torch.no_grad():
        next(changed.model.parameters())[0, 0] += 1e-3
    with pytest.raises(UserError, match=r"none of its checkpoints \(steps 0, 2, 4, 6\)"):
        measured(changed, data=texts, run=run)


def test_the_weights_that_a_run_began_with_are_not_its_own(trained, tokenizer, texts, tmp_path):
    lm, run, _ = trained
    fork = run.fork("fork", steps=8)  # from the newest checkpoint: it begins with just what `lm` has
    fork.wait(progress=False)
    with pytest.raises(
        UserError, match=r"weights that the run 'fork' began with at step 6, not .* at step 8"
    ):
        measured(lm, data=texts, run=fork)
    for opened in (nb.load(fork, at_step=6), nb.load(fork.checkpoints[0].path)):
        assert measured(opened, data=texts, run=fork).title.endswith("the run fork at step 6")
    new = LM.new("llama", tokenizer=tokenizer, num_layers=1, hidden_size=16, num_heads=2, max_positions=64)
    apart = nb.train(new, texts, folder=tmp_path, name="apart", where="process", **TINY)
    apart.wait(progress=False)  # a process leaves the model in this kernel as it was
    with pytest.raises(UserError, match=r"weights that the run 'apart' began with at step 0"):
        measured(new, data=texts, run=apart)
    assert measured(apart, data=texts).title.endswith("the run apart")


def test_an_earlier_checkpoint_is_told_as_such(trained, texts):
    _, run, _ = trained
    report = measured(nb.load(run, at_step=4), data=texts, run=run)
    assert report.title.endswith("the run demo at step 4")
    assert "of the run demo at step 4" in str(report)


def test_the_same_weights_in_another_dtype_are_the_runs(trained):
    _, run, _ = trained
    assert weights_step(nb.load(run, dtype=torch.bfloat16), run) == 6


def test_names_and_paths(trained, texts, monkeypatch):
    lm, run, _ = trained
    monkeypatch.chdir(run.path.parent.parent)
    expected = measured(lm, data=texts).metric("bits per byte")
    for given in ("demo", "runs/demo", run.path):
        assert measured(given, data=texts).metric("bits per byte") == expected
        assert measured(lm, data=texts, run=given).title.endswith("the run demo")
        assert nb.load(given).origin == "demo"
    assert nb.attach("demo").path == nb.attach(run).path == run.path
    assert nb.compare("demo", "child").names == ("demo", "child")
    for verb in (nb.attach, nb.compare, nb.replay):
        with pytest.raises(RunError, match=r"There is no run 'dmeo'[\s\S]*Did you mean 'demo'"):
            verb("dmeo")
    for verb in (nb.load, nb.evaluate):
        with pytest.raises(WeightsError, match=r"'dmeo'[\s\S]*Did you mean 'demo'"):
            verb("dmeo")
    with pytest.raises(RunError, match="Did you mean 'demo'"):
        measured(lm, data=texts, run="dmeo")
    with pytest.raises(WeightsError, match=r"no model or run here[\s\S]*Did you mean 'demo'"):
        nb.load("runs/dmeo")
    with pytest.raises(WeightsError, match=r"no model or run here[\s\S]*holds runs: child, demo"):
        nb.load("runs")
    with pytest.raises(WeightsError, match="There is no folder 'elsewhere/demo'"):
        nb.load("elsewhere/demo")
    for verb in (nb.load, nb.evaluate):
        with pytest.raises(UserError, match="list is neither a"):
            verb([run])


def test_loading_a_step(trained):
    _, run, _ = trained
    assert nb.load(run, at_step=2).origin == "demo at step 2"
    stored = nb.load(run.checkpoints[1].path)
    pairs = zip(nb.load(run, at_step=2).model.parameters(), stored.model.parameters(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)
    with pytest.raises(WeightsError, match=r"no checkpoint at step 3[\s\S]*There are: 0, 2, 4, 6"):
        nb.load(run, at_step=3)
    with pytest.raises(UserError, match="at_step=2 is for runs"):
        nb.load(run.checkpoints[1].path, at_step=2)


def test_a_live_run_and_the_model_that_it_trains(tokenizer, texts, tmp_path):
    lm = LM.new("llama", tokenizer=tokenizer, num_layers=1, hidden_size=16, num_heads=2, max_positions=64)
    run = nb.train(lm, texts, folder=tmp_path, **{**TINY, "steps": 100_000, "checkpoint_interval": 0})
    try:
        run.wait(step=2, progress=False)
        assert weights_step(lm, run) is None
        run.pause()
        assert "the run" in measured(lm, data=texts[:2], run=run).title
        step = run.checkpoints[-1].step
        assert f"of the run {run.name} at step {step}" in str(measured(run, data=texts[:2]))
    finally:
        run.stop()
        run.wait(progress=False)


def test_a_run_without_models_says_so(tmp_path):
    loop = nb.follow("mine", folder=tmp_path, steps=1, modules={"layer": torch.nn.Linear(2, 2)})
    for _ in loop:
        loop.log(loss=1.0)
    with pytest.raises(WeightsError, match=r"hold no model to open[\s\S]*Save the model in that loop"):
        nb.load(loop.run)


def test_a_checkpoint_that_is_deleted_while_it_is_opened(trained, tmp_path, monkeypatch):
    """As by a trainer that goes on, and prunes: the newest of what there is then is opened."""
    import nbllm.opening as module

    _, run, _ = trained
    path = tmp_path / "demo"
    shutil.copytree(run.path, path)
    opened = []
    read = module._open

    def open_late(directory, *arguments):
        opened.append(directory.name)
        if len(opened) == 1:
            shutil.rmtree(directory)
        return read(directory, *arguments)

    monkeypatch.setattr(module, "_open", open_late)
    assert nb.load(path).num_parameters
    assert opened == ["step-00000006", "step-00000004"]
