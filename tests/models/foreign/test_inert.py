"""Whatever class or function a pickle names, none is called."""

import collections
import io
import pickle

import pytest
import torch

from nbllm.core.errors import WeightsError
from nbllm.models.foreign.archive import StoredTensor, read_archive
from nbllm.models.foreign.inert import Inert, InertUnpickler, fields


def read(data):
    return InertUnpickler(io.BytesIO(data)).load()


@pytest.mark.parametrize("protocol", range(6))
def test_objects_keep_what_they_were_made_of(their_class, protocol):
    made = their_class("theirs.settings", "Settings")
    made.rate = 0.5
    value = read(pickle.dumps({"a": [made], "b": {1, 2}, "c": collections.OrderedDict(x=(1,))}, protocol))
    if protocol >= 2:
        assert fields(value["a"][0]) == {"rate": 0.5}
        assert value["a"][0].origin == "theirs.settings.Settings"
    assert isinstance(value["a"][0], Inert) and value["c"] == {"x": (1,)}


def test_functions_of_others_are_not_called():
    called = []
    torch.hub.spy = called.append  # a function that can be found, by a name that is not refused
    try:
        value = read(b"ctorch.hub\nspy\n(S'x'\ntR.")
    finally:
        del torch.hub.spy
    assert value.origin == "torch.hub.spy" and value.arguments == ("x",) and not called


@pytest.mark.parametrize(
    "name",
    [
        "os\nsystem",
        "posix\nsystem",
        "__builtin__\neval",
        "builtins\nexec",
        "commands\ngetoutput",
        "os.path\njoin",
    ],
)
@pytest.mark.parametrize("called", [b"(S'x'\ntR.", b"."])
def test_functions_of_python_are_refused(name, called):
    with pytest.raises(WeightsError, match=name.split("\n")[1]):
        read(b"c" + name.encode() + b"\n" + called)


def test_a_name_through_another_module_reaches_nothing():
    assert issubclass(read(b"ctorch.hub.os\nsystem\n."), Inert)


def test_an_archives_tensors_are_those_of_torch(tmp_path):
    whole = torch.arange(24.0).view(4, 6)
    values = {
        "whole": whole,
        "rows": whole[1:3],
        "bfloat16": whole.bfloat16(),
        "empty": torch.empty(0, 3),
        "parameter": torch.nn.Parameter(whole),
        "transposed": whole.t(),
    }
    torch.save(values, tmp_path / "file.pt")
    read = read_archive(tmp_path / "file.pt")
    for name in ("whole", "rows", "bfloat16", "empty", "parameter"):
        stored = read[name]
        assert isinstance(stored, StoredTensor) and stored.dtype == values[name].dtype
        assert torch.equal(stored.read().view(stored.shape), values[name])
    assert read["rows"].read(2, 5).tolist() == [8, 9, 10, 11, 12]
    assert isinstance(read["transposed"], Inert)


def test_a_file_that_became_shorter(tmp_path):
    torch.save({"x": torch.ones(1000)}, tmp_path / "file.pt")
    stored = read_archive(tmp_path / "file.pt")["x"]
    (tmp_path / "file.pt").write_bytes(b"")
    with pytest.raises(WeightsError, match="shorter"):
        stored.read()
