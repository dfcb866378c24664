"""Checkpoints whose tensors several ranks write and read in parts."""

from __future__ import annotations

import errno
import os
import shutil

import pytest
import torch
import torch.distributed as dist
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

from nbllm.core.errors import RefusedError, WeightsError
from nbllm.models.tensor_shards import FOLDER, TensorShards, write_parts
from nbllm.runs import checkpoint as checkpoints
from nbllm.training.checkpoint_writer import Contents
from nbllm.training.sharded_writer import ShardedWriter

STATE = {"step": 3, "num_actions": 1}


def wholes():
    """Tensors of all kinds: of odd sizes, with fewer rows than ranks, with no dimension."""
    generator = torch.Generator().manual_seed(0)
    shapes = {"model.matrix": (7, 6), "model.bias": (1,), "optimizer.exp_avg.matrix": (7, 6)}
    tensors = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    return tensors | {
        "optimizer.step.matrix": torch.tensor(3.0),
        "model.codes": torch.arange(9, dtype=torch.uint8),
    }


def on_ranks(placements):
    """The tensors as a rank holds them: those of two dimensions or less laid as asked, what has none on all ranks."""
    mesh = dist.init_device_mesh("cpu", (2,) if len(placements) == 1 else (2, 2))
    tensors = {}
    for name, whole in wholes().items():
        fitting = [p if whole.ndim > getattr(p, "dim", -1) else Replicate() for p in placements]
        tensors[name] = distribute_tensor(whole, mesh, fitting) if whole.ndim else whole.clone()
    return tensors


def write(folder, placements):
    tensors = on_ranks(placements)
    writer = ShardedWriter()
    writer.begin(folder, 3, Contents(lambda aside: (aside / "config.json").write_text("{}"), tensors), STATE)
    for tensor in tensors.values():  # training goes on: the checkpoint holds what was there when it was begun
        tensor.zero_()
    return writer.finish().name


def read(folder, placements):
    tensors = {name: torch.zeros_like(tensor) for name, tensor in on_ranks(placements).items()}
    TensorShards(folder / FOLDER).fill(tensors)
    return {n: t.full_tensor() if isinstance(t, DTensor) else t for n, t in tensors.items()}


def equal(tensors):
    return tensors.keys() == wholes().keys() and all(torch.equal(tensors[n], w) for n, w in wholes().items())


@pytest.fixture(scope="session")
def sharded_run(two_ranks, tmp_path_factory):
    """A run's folder with one checkpoint, each tensor divided by rows between two ranks."""
    folder = tmp_path_factory.mktemp("sharded")
    assert two_ranks(write, folder, [Shard(0)]) == ["step-00000003"] * 2
    return folder


@pytest.fixture
def checkpoint(sharded_run):
    return checkpoints.checkpoints(sharded_run)[0].path


def test_each_rank_writes_its_part_and_the_manifest_has_all(checkpoint):
    assert not checkpoints.verify(checkpoint)
    assert checkpoints.load_state(checkpoint) == STATE
    sizes = [(checkpoint / FOLDER / f"0000{rank}.safetensors").stat().st_size for rank in (0, 1)]
    assert min(sizes) > 0.6 * max(sizes)
    files = [file.name for file in checkpoint.rglob("*") if file.is_file()]
    assert sorted(files) == [
        "00000.safetensors",
        "00001.safetensors",
        "config.json",
        "index.json",
        "manifest.json",
        "state.json",
    ]


def test_one_process_reads_what_two_ranks_wrote(checkpoint):
    shards = TensorShards(checkpoint / FOLDER)
    assert equal(shards.read(shards.shapes))
    assert equal(dict(shards.read_all(shards.shapes)))


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_torch_reads_it_too(checkpoint):
    import torch.distributed.checkpoint as dcp

    tensors = {name: torch.zeros_like(whole) for name, whole in wholes().items()}
    dcp.load(tensors, storage_reader=HuggingFaceStorageReader(str(checkpoint / FOLDER)), no_dist=True)
    assert equal(tensors)


@pytest.mark.parametrize("placements", [[Shard(0)], [Shard(1)], [Replicate()]], ids=str)
def test_ranks_that_hold_other_parts_read_it(two_ranks, checkpoint, placements):
    assert all(map(equal, two_ranks(read, checkpoint, placements)))


def test_what_all_ranks_hold_is_written_once(two_ranks, tmp_path):
    two_ranks(write, tmp_path, [Replicate()])
    (info,) = checkpoints.checkpoints(tmp_path)
    shards = TensorShards(info.path / FOLDER)
    assert equal(shards.read(shards.shapes))


@pytest.mark.parametrize(
    "placements", [[Shard(0), Shard(1)], [Shard(0), Shard(0)], [Replicate(), Shard(0)]], ids=str
)
def test_meshes_of_two_dimensions(four_ranks, tmp_path, placements):
    four_ranks(write, tmp_path, placements)
    (info,) = checkpoints.checkpoints(tmp_path)
    shards = TensorShards(info.path / FOLDER)
    assert equal(shards.read(shards.shapes))
    assert all(map(equal, four_ranks(read, info.path, [Shard(1), Shard(0)])))


def test_a_file_without_parts_is_read_in_parts(two_ranks, tmp_path):
    from safetensors.torch import save_file

    (tmp_path / FOLDER).mkdir()
    save_file(wholes(), tmp_path / FOLDER / "whole.safetensors")
    assert all(map(equal, two_ranks(read, tmp_path, [Shard(0)])))


@pytest.mark.parametrize("full", [0, 1])
def test_a_full_disk_on_any_rank_is_refused_on_all_and_nothing_is_left(two_ranks, tmp_path, full):
    def attempt(folder):
        from nbllm.training import sharded_writer

        def fails(*args):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        given = sharded_writer.write_parts
        if dist.get_rank() == full:
            sharded_writer.write_parts = fails
        try:
            with pytest.raises(RefusedError, match="No space left on device"):
                write(folder, [Shard(0)])
        finally:
            sharded_writer.write_parts = given
        return write(folder, [Shard(0)])

    assert two_ranks(attempt, tmp_path) == ["step-00000003"] * 2
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000003"]


def test_a_folder_that_cannot_be_made_is_refused_on_all_ranks(two_ranks, tmp_path):
    def attempt(folder):
        with pytest.raises(RefusedError):
            write(folder, [Shard(0)])

    two_ranks(attempt, tmp_path / "deleted")
    assert not (tmp_path / "deleted").exists()


def test_a_missing_file_is_named_and_not_read_over(checkpoint, tmp_path):
    shutil.copytree(checkpoint / FOLDER, tmp_path / FOLDER)
    (tmp_path / FOLDER / "00001.safetensors").unlink()
    with pytest.raises(WeightsError, match="Part of .* is missing"):
        TensorShards(tmp_path / FOLDER)


def test_parts_that_are_there_twice_are_refused(checkpoint, tmp_path):
    shutil.copytree(checkpoint / FOLDER, tmp_path / FOLDER)
    shutil.copy(tmp_path / FOLDER / "00001.safetensors", tmp_path / FOLDER / "00002.safetensors")
    with pytest.raises(WeightsError, match="twice"):
        TensorShards(tmp_path / FOLDER)


def test_other_names_and_shapes_are_refused(checkpoint):
    shards = TensorShards(checkpoint / FOLDER)
    with pytest.raises(WeightsError, match=r"model\.other is missing"):
        shards.read(["model.other"])
    with pytest.raises(WeightsError, match=r"shape \[7, 6\], not \[6, 7\]"):
        shards.fill({"model.matrix": torch.zeros(6, 7)})


@pytest.mark.parametrize("said", ["no JSON", "{}", '{"a": {}}', '{"a": {"saved_offsets": [9]}}'])
def test_hostile_headers_are_an_error(tmp_path, said):
    from safetensors.torch import save_file

    (tmp_path / FOLDER).mkdir()
    save_file({"a": torch.zeros(3)}, tmp_path / FOLDER / "0.safetensors", {"DCP_SHARDING_INFO": said})
    with pytest.raises(WeightsError):
        TensorShards(tmp_path / FOLDER).read(["a"])


def test_a_pickle_is_never_opened(checkpoint, tmp_path):
    shutil.copytree(checkpoint, tmp_path / "copy")
    opened = tmp_path / "opened"
    (tmp_path / "copy" / FOLDER / ".metadata").write_bytes(b"cos\nmkdir\n(S'%s'\ntR." % bytes(opened))
    shards = TensorShards(tmp_path / "copy" / FOLDER)
    assert equal(shards.read(shards.shapes))
    assert not opened.exists()


def test_a_part_written_alone(tmp_path):
    (tmp_path / FOLDER).mkdir()
    write_parts({"a": ((0, 0), torch.ones(2, 2))}, tmp_path / FOLDER / "0.safetensors")
    write_parts({"a": ((2, 0), torch.zeros(1, 2))}, tmp_path / FOLDER / "1.safetensors")
    assert torch.equal(
        TensorShards(tmp_path / FOLDER).read(["a"])["a"], torch.tensor([[1.0, 1], [1, 1], [0, 0]])
    )
