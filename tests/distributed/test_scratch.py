"""Tensors in files: they are as any tensor, take no memory of the process, and leave nothing behind."""

from __future__ import annotations

import errno
import gc

import pytest
import torch
from torch import nn

from nbllm.core.errors import RunError
from nbllm.distributed.scratch import Scratch

LARGE = (512, 512)


@pytest.fixture
def scratch(tmp_path):
    return Scratch(tmp_path)


def is_in_file(tensor):
    """Whether a tensor's memory is mapped from a file of which the name is gone."""
    with open("/proc/self/maps") as maps:
        for line in maps:
            first, last = (int(part, 16) for part in line.split()[0].split("-"))
            if first <= tensor.data_ptr() < last:
                return "offload-" in line and line.rstrip().endswith("(deleted)")
    raise AssertionError("mapped nowhere")


def test_a_tensor_holds_what_is_written_and_its_file_has_no_name(scratch, tmp_path):
    tensor = scratch.empty((3, 5), torch.float32)
    assert is_in_file(tensor) and not tensor.any()
    tensor.copy_(torch.arange(15.0).view(3, 5))
    scratch.prefetch([tensor, tensor[1:]])
    assert torch.equal(tensor, torch.arange(15.0).view(3, 5))
    assert not list(tmp_path.iterdir())


def test_large_tensors_are_made_in_files_whatever_makes_them(scratch):
    plain = torch.randn(LARGE)
    with scratch.allocating():
        made = {
            "empty": torch.empty(LARGE), "zeros": torch.zeros(LARGE), "zeros_like": torch.zeros_like(plain),
            "new_zeros": plain.new_zeros(LARGE), "clone": plain.clone(), "copy": plain.to("cpu", copy=True),
            "half": plain.to(torch.float16), "transposed": plain.t().contiguous(),
            "cat": torch.cat([plain, plain], 1), "of another dtype": torch.zeros(LARGE, dtype=torch.int32),
        }  # fmt: skip
        small, product = torch.zeros(8), plain @ plain
        on_meta = torch.empty(LARGE, device="meta")
        with torch.device("meta"):
            layer = nn.Linear(*LARGE)
        layer = layer.to_empty(device="cpu")
    assert all(is_in_file(tensor) for tensor in made.values()) and is_in_file(layer.weight)
    assert not is_in_file(small) and not is_in_file(product) and on_meta.is_meta
    assert not made["zeros"].any() and not made["of another dtype"].any()
    assert torch.equal(made["clone"], plain) and torch.equal(made["half"], plain.half())
    assert torch.equal(made["transposed"], plain.t()) and torch.equal(
        made["cat"], torch.cat([plain, plain], 1)
    )
    assert made["of another dtype"].dtype == torch.int32
    assert not is_in_file(torch.zeros(LARGE))


def test_of_an_optimizer_the_state_alone_is_made_in_files(scratch):
    with scratch.allocating(zeros_only=True):
        assert is_in_file(torch.zeros_like(torch.empty(LARGE)))
        assert not is_in_file(torch.randn(LARGE).clone())


def test_memory_is_given_back_with_the_tensor(scratch):
    def mapped():
        with open("/proc/self/maps") as maps:
            return sum("offload-" in line for line in maps)

    gc.collect()
    before = mapped()
    tensor = scratch.empty(LARGE, torch.float32)
    view = tensor[5:]
    assert mapped() == before + 1
    del tensor
    assert mapped() == before + 1
    del view
    assert mapped() == before


def test_a_full_disk_is_an_error_and_not_a_dead_process(scratch, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", full)
    with pytest.raises(RunError, match=r"A file of 1\.05 MB.*No space left"):
        scratch.empty(LARGE, torch.float32)
    assert not list(tmp_path.iterdir())
    with pytest.raises(RunError, match="No such file"):
        Scratch(tmp_path / "gone").empty(LARGE, torch.float32)
