import sys
import types

import pytest
import torch
from safetensors.torch import load_file

from nbllm.models import save_model


@pytest.fixture
def taken_apart(make_model, tmp_path):
    """Return a function that makes a model's folder: without its weights, which come back by their names."""

    def take_apart(family, **changes):
        model = make_model(family, **changes)
        save_model(model, tmp_path)
        tensors = load_file(tmp_path / "model.safetensors")
        (tmp_path / "model.safetensors").unlink()
        return model, tensors, tmp_path

    return take_apart


@pytest.fixture
def their_class(monkeypatch):
    """Return a function that makes an object of another framework's class, which is gone when the file is read."""

    def make(module, name):
        parts = module.split(".")
        for end in range(1, len(parts) + 1):
            fake = types.ModuleType(".".join(parts[:end]))
            monkeypatch.setitem(sys.modules, fake.__name__, fake)
        kind = type(name, (), {"__module__": module})
        setattr(fake, name, kind)
        return kind()

    return make


class Calls:
    """An object whose pickle calls a function when it is read."""

    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


@pytest.fixture
def calls():
    return Calls


def same_weights(opened, model):
    for (name, one), (_, other) in zip(opened.named_parameters(), model.named_parameters(), strict=True):
        assert torch.equal(one, other), name


@pytest.fixture
def check_same():
    return same_weights
