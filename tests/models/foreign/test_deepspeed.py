"""Files laid out as DeepSpeed lays them, by a writer of this test: the same weights, bit for bit."""

import math
import os
import subprocess
from collections import OrderedDict

import pytest
import torch

import nbllm as nb
from nbllm.core.errors import WeightsError
from nbllm.models import load_model

STEP = "global_step3"


def groups_of(names):
    """Two groups of parameters, as an optimizer has those with weight decay and without."""
    norms = [name for name in names if "norm" in name or "ln_" in name]
    return [[name for name in names if name not in norms], norms]


def write(folder, tensors, *, stage, ranks, frozen=(), extra=None, lean=False, tag=STEP):
    """Write a checkpoint of ZeRO; `lean`: the padding of the last rank is left out."""
    here = folder / tag
    here.mkdir()
    (folder / "latest").write_text(tag)
    groups = groups_of([name for name in tensors if name not in frozen])
    shapes = [OrderedDict((name, tensors[name].shape) for name in group) for group in groups]
    common = {
        "buffer_names": [],
        "param_shapes": shapes,
        "frozen_param_shapes": OrderedDict((name, tensors[name].shape) for name in frozen) or None,
        "shared_params": {},
        "ds_version": "0.19.8",
        **(extra or {}),
    }
    key = "single_partition_of_fp32_groups" if stage < 3 else "fp32_flat_groups"
    for rank in range(ranks):
        if stage < 3:
            parts = [share(flat(tensors, group), rank, ranks, 2 * ranks, lean) for group in groups]
        else:
            whole = torch.cat(
                [share(tensors[name].flatten(), rank, ranks, ranks) for group in groups for name in group]
            )
            parts = list(whole.split([len(whole) // 3, len(whole) - len(whole) // 3]))
        state = {key: parts, "zero_stage": stage, "partition_count": [ranks] * 2 if stage < 3 else ranks}
        state["optimizer_state_dict"] = {"state": {0: {"exp_avg": torch.zeros(3)}}}
        prefix = f"zero_pp_rank_{rank}_mp_rank_00"
        torch.save({"optimizer_state_dict": state}, here / f"{prefix}_optim_states.pt")
        fragments = {name: share(tensors[name].flatten(), rank, ranks, ranks) for name in frozen}
        if stage == 3:
            empty = {name: torch.empty(0) for name in tensors}
            states = {**common, "module": empty, "frozen_param_fragments": fragments}
            torch.save(states, here / f"{prefix}_model_states.pt")
    if stage < 3:
        module = {
            name: tensor.bfloat16() if name not in frozen else tensor for name, tensor in tensors.items()
        }
        torch.save({**common, "module": module}, here / "mp_rank_00_model_states.pt")
    return here


def flat(tensors, names):
    return torch.cat([tensors[name].flatten() for name in names])


def share(vector, rank, ranks, unit, lean=False):
    """Return a rank's part of a vector, which is padded to a multiple of `unit`."""
    size = math.ceil(len(vector) / unit) * unit // ranks
    part = vector[rank * size : (rank + 1) * size]
    return part if lean else torch.cat([part, torch.full((size - len(part),), 7.0)])


@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize(("stage", "lean"), [(1, False), (2, True), (2, False), (3, False)])
def test_the_float32_weights_of_every_stage(taken_apart, check_same, stage, lean, ranks):
    model, tensors, folder = taken_apart("llama", intermediate_size=45)
    write(folder, tensors, stage=stage, ranks=ranks, lean=lean)
    check_same(load_model(folder), model)


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_frozen_and_tied_parameters(taken_apart, check_same, stage):
    model, tensors, folder = taken_apart("gpt2")
    shared = {"shared_params": {"lm_head.weight": "transformer.wte.weight"}}
    frozen = ["transformer.h.0.ln_1.weight", "transformer.h.1.mlp.c_fc.weight"]
    write(folder, tensors, stage=stage, ranks=2, frozen=frozen, extra=shared)
    check_same(load_model(folder), model)


def test_a_module_without_zero(taken_apart, check_same):
    model, tensors, folder = taken_apart("llama")
    (folder / STEP).mkdir()
    torch.save(
        {"module": OrderedDict(tensors), "param_shapes": None}, folder / STEP / "mp_rank_00_model_states.pt"
    )
    (folder / "latest").write_text(STEP)
    check_same(load_model(folder), model)


def test_objects_of_deepspeeds_classes_are_passed_over(taken_apart, check_same, their_class, monkeypatch):
    model, tensors, folder = taken_apart("llama")
    scaler = their_class("deepspeed.runtime.fp16.loss_scaler", "LossScaler")
    scaler.cur_scale = 1.0
    write(folder, tensors, stage=2, ranks=2, extra={"loss_scaler": scaler, "lr_scheduler": {"seen": {1, 2}}})
    monkeypatch.undo()
    with pytest.raises(Exception, match="LossScaler"):
        torch.load(folder / STEP / "mp_rank_00_model_states.pt", weights_only=True)
    check_same(load_model(folder), model)


def test_load_opens_it_and_saves_a_model_directory(taken_apart, check_same, tmp_path):
    model, tensors, folder = taken_apart("llama", vocab_size=300)
    write(folder, tensors, stage=3, ranks=2)
    tokenizer = nb.data.train_tokenizer(["some text"], vocab_size=257)
    lm = nb.load(folder, tokenizer=tokenizer)
    lm.save(tmp_path / "saved")
    check_same(load_model(tmp_path / "saved"), model)


@pytest.mark.parametrize(
    ("function", "arguments"),
    [(os.system, "touch"), (subprocess.check_output, "touch"), (eval, "open"), (open, "path")],
)
@pytest.mark.parametrize("file", ["mp_rank_00_model_states.pt", "zero_pp_rank_1_mp_rank_00_optim_states.pt"])
def test_a_hostile_pickle_runs_nothing_and_is_refused_by_name(
    taken_apart, calls, tmp_path, function, arguments, file
):
    _, tensors, folder = taken_apart("llama")
    here = write(folder, tensors, stage=2, ranks=2)
    made = tmp_path / "made"
    what = {"touch": (f"touch {made}",), "open": (f"open({str(made)!r}, 'w')",), "path": (str(made), "w")}
    state = torch.load(here / file)
    state["extra"] = calls(function, *what[arguments])
    torch.save(state, here / file)
    with pytest.raises(WeightsError, match=function.__name__) as caught:
        load_model(folder)
    assert "nothing of it was run" in str(caught.value) and file in str(caught.value)
    assert not made.exists()


def refused(folder, *words):
    with pytest.raises(WeightsError) as caught:
        load_model(folder)
    for word in words:
        assert word in str(caught.value), caught.value


@pytest.mark.parametrize(("missing", "words"), [(1, "of rank 1 are missing"), (2, "3 ranks saved")])
def test_a_missing_rank(taken_apart, missing, words):
    _, tensors, folder = taken_apart("llama")
    here = write(folder, tensors, stage=2, ranks=3)
    (here / f"zero_pp_rank_{missing}_mp_rank_00_optim_states.pt").unlink()
    refused(folder, words, "Copy the files of all ranks")


def test_missing_optimizer_states(taken_apart):
    _, tensors, folder = taken_apart("llama")
    here = write(folder, tensors, stage=2, ranks=1)
    (here / "zero_pp_rank_0_mp_rank_00_optim_states.pt").unlink()
    refused(folder, "optimizer's states are missing")


@pytest.mark.parametrize("stage", [2, 3])
def test_files_of_another_run(taken_apart, stage):
    _, tensors, folder = taken_apart("llama")
    here = write(folder, tensors, stage=stage, ranks=2)
    path = here / "zero_pp_rank_1_mp_rank_00_optim_states.pt"
    state = torch.load(path)
    parts = state["optimizer_state_dict"][
        "single_partition_of_fp32_groups" if stage == 2 else "fp32_flat_groups"
    ]
    parts[0] = parts[0][:-50].clone()
    torch.save(state, path)
    refused(folder, "elements", "mixed")


@pytest.mark.parametrize(
    ("file", "word"),
    [
        ("zero_pp_rank_0_mp_rank_01_optim_states.pt", "tensor parallel"),
        ("layer_00-model_states.pt", "pipeline"),
    ],
)
def test_layouts_that_are_not_implemented(taken_apart, file, word):
    _, tensors, folder = taken_apart("llama")
    here = write(folder, tensors, stage=2, ranks=1)
    (here / file).write_bytes(b"")
    refused(folder, word, file, "Merge it")


def test_names_of_another_model(taken_apart):
    _, tensors, folder = taken_apart("llama")
    tensors["model.layers.0.mlp.extra.weight"] = torch.zeros(3)
    write(folder, tensors, stage=2, ranks=2)
    refused(folder, "surplus", "mlp.extra")


def test_a_folder_that_latest_names_and_is_not_there(taken_apart):
    _, tensors, folder = taken_apart("llama")
    write(folder, tensors, stage=2, ranks=1)
    (folder / "latest").write_text("../elsewhere")
    refused(folder, "'../elsewhere'", "latest")


def test_without_a_configuration(taken_apart):
    _, tensors, folder = taken_apart("llama")
    write(folder, tensors, stage=2, ranks=1)
    (folder / "config.json").unlink()
    refused(folder, "Copy config.json")


@pytest.mark.parametrize("keep", [0, 100, 3000, -40])
def test_a_truncated_file(taken_apart, keep):
    _, tensors, folder = taken_apart("llama")
    path = write(folder, tensors, stage=2, ranks=1) / "mp_rank_00_model_states.pt"
    path.write_bytes(path.read_bytes()[:keep])
    refused(folder, "no whole file of torch.save", path.name)


def test_values_that_are_not_finite(taken_apart):
    _, tensors, folder = taken_apart("llama")
    tensors["model.norm.weight"][3] = math.inf
    write(folder, tensors, stage=3, ranks=2)
    refused(folder, "model.norm.weight holds 1 values that are not finite")
