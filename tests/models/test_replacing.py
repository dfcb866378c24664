"""Saving over what is there: the model's own files are replaced, and no others."""

import contextlib
import json
import os
import stat
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from nbllm.core.errors import UserError
from nbllm.data import train_tokenizer
from nbllm.lm import LM
from nbllm.models import save_model
from nbllm.models.gguf import save_gguf
from nbllm.models.replacing import replacing_model
from nbllm.opening import load
from nbllm.runs import checkpoint

TEXT = ["the cat sat on the mat and the dog sat on the log", "def f(x):\n    return x + 1"]
OTHERS = (
    "README.md",
    "LICENSE",
    ".git/HEAD",
    "optimizer.pt",
    "thesis.tex",
    "onnx/model.onnx",
    "pytorch_model.bin",
)


def make_tokenizer(size=290):
    return train_tokenizer(TEXT * 4, size)


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer()


def make(tokenizer, seed=0, **changes):
    shape = {"hidden_size": 32, "num_layers": 2, "num_heads": 4, "max_positions": 32, **changes}
    return LM.new("llama", tokenizer=tokenizer, seed=seed, **shape)


@pytest.fixture
def lm(tokenizer):
    return make(tokenizer)


@pytest.fixture
def other(tokenizer):
    return make(tokenizer, seed=1)


def contents(folder):
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def same_weights(path, lm):
    found, wanted = dict(load(path).model.named_parameters()), dict(lm.model.named_parameters())
    return found.keys() == wanted.keys() and all(torch.equal(found[name], wanted[name]) for name in wanted)


@pytest.fixture
def clone(lm, tmp_path):
    """A folder as `git clone` makes it: the model's files and others."""
    folder = lm.save(tmp_path / "clone")
    for name in OTHERS:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(f"{name}, which took years")
    return folder


def test_what_is_not_the_models_stays(clone, other):
    before = {name: (clone / name).read_bytes() for name in OTHERS}
    other.save(clone)
    assert {name: (clone / name).read_bytes() for name in OTHERS} == before
    assert same_weights(clone, other)
    assert not list(clone.glob(".aside-*"))
    opened = load(clone)
    opened.save(clone)
    assert {name: (clone / name).read_bytes() for name in OTHERS} == before


def test_weights_that_contradict_the_new_ones_go(clone, lm, other):
    (clone / "model.safetensors").unlink()
    save_model(lm.model, clone, max_shard_bytes=20_000)
    shards = list(clone.glob("model-*.safetensors"))
    assert len(shards) > 2
    other.save(clone)
    assert not [shard for shard in shards if shard.exists()]
    assert not (clone / "model.safetensors.index.json").exists()
    assert same_weights(clone, other)
    with replacing_model(clone) as folder:  # and the other way round
        lm.write_files(folder)
        (folder / "model.safetensors").unlink()
        save_model(lm.model, folder, max_shard_bytes=20_000)
    assert not (clone / "model.safetensors").exists()
    assert same_weights(clone, lm)


def test_an_index_names_nothing_outside_the_folder(clone, lm, tmp_path):
    (tmp_path / "mine.safetensors").write_text("mine")
    for name in ("../mine.safetensors", str(tmp_path / "mine.safetensors"), "README.md"):
        (clone / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
        lm.save(clone)
        assert (tmp_path / "mine.safetensors").exists()
        assert (clone / "README.md").exists()


def test_an_older_tokenizer_leaves_no_trace(clone, lm):
    old = make_tokenizer()
    old.chat_template = {"default": "old", "tools": "old too"}
    LM(lm.model, old).save(clone)
    (clone / "special_tokens_map.json").write_text('{"eos_token": "old"}')
    (clone / "added_tokens.json").write_text('{"old": 288}')
    assert (clone / "additional_chat_templates" / "tools.jinja").exists()
    lm.save(clone)
    for opened in (load(clone).tokenizer, AutoTokenizer.from_pretrained(clone)):
        assert opened.chat_template is None
        assert opened.eos_token == lm.tokenizer.eos_token
        assert opened.get_vocab() == lm.tokenizer.get_vocab()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("config.json", '{"port": 8080}'),
        ("config.json", "[1, 2]"),
        ("config.json", "not JSON"),
        ("config.json", "[" * 100_000),
        ("model.safetensors", "weights of mine"),
        ("tokenizer.json", "{}"),
        ("chat_template.jinja", "mine"),
    ],
)
def test_files_that_are_no_models_are_not_replaced(lm, tmp_path, name, content):
    (tmp_path / name).write_text(content)
    (tmp_path / "thesis.tex").write_text("years")
    before = contents(tmp_path)
    with pytest.raises(UserError, match=rf"{name} that is not a model's.*\n.*where.*\n.*another folder"):
        lm.save(tmp_path)
    assert contents(tmp_path) == before


def test_a_folder_of_other_things_gets_the_models_files_too(lm, tmp_path, monkeypatch):
    (tmp_path / "thesis.tex").write_text("years")
    monkeypatch.chdir(tmp_path)
    lm.save(".")
    assert same_weights(".", lm)
    assert Path("thesis.tex").read_text() == "years"
    lm.tokenizer.save_pretrained("tokenizer-first")
    assert same_weights(lm.save("tokenizer-first"), lm)


def test_a_file_and_a_checkpoint_are_refused(lm, tmp_path):
    (tmp_path / "notes").write_text("dear")
    with pytest.raises(UserError, match="a file of this name"):
        lm.save(tmp_path / "notes")
    (tmp_path / "run").mkdir()
    saved = checkpoint.save(tmp_path / "run", 3, lm.write_files, {"num_actions": 0})
    with pytest.raises(UserError, match="a run's checkpoint"):
        lm.save(saved.path)
    assert checkpoint.verify(saved.path) == []


def test_links_are_written_through(lm, other, tmp_path):
    (tmp_path / "disk").mkdir()
    for target in ("disk/model", "disk/later"):
        link = tmp_path / f"link-{Path(target).name}"
        link.symlink_to(target, target_is_directory=True)
        if target == "disk/model":
            lm.save(tmp_path / target)
        other.save(link)
        assert link.is_symlink()
        assert same_weights(tmp_path / target, other)
    lm.save(tmp_path / "disk/model.gguf")
    (tmp_path / "link.gguf").symlink_to("disk/model.gguf")
    before = (tmp_path / "disk/model.gguf").read_bytes()
    other.save(tmp_path / "link.gguf")
    assert (tmp_path / "link.gguf").is_symlink()
    assert (tmp_path / "disk/model.gguf").read_bytes() != before


def test_a_linked_file_of_the_folder_is_replaced_not_changed(lm, other, tmp_path):
    """As in the hub's cache, where a file's name is its checksum."""
    folder = lm.save(tmp_path / "model")
    blob = (folder / "model.safetensors").rename(tmp_path / "blob")
    (folder / "model.safetensors").symlink_to(blob)
    before = blob.read_bytes()
    other.save(folder)
    assert blob.read_bytes() == before
    assert same_weights(folder, other)


def test_a_home_is_expanded(lm, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert lm.save("~/model") == tmp_path / "model"
    assert lm.save("~/deep/model.gguf") == tmp_path / "deep/model.gguf"
    save_gguf(lm.model, lm.tokenizer, "~/other.gguf")
    save_model(lm.model, "~/model")
    assert load("~/model").origin == "model"
    assert load("~/deep/model.gguf").num_parameters == load(Path("~/other.gguf")).num_parameters
    assert not (tmp_path / "~").exists()


def test_gguf_by_any_spelling_of_its_suffix(lm, other, tmp_path):
    path = lm.save(tmp_path / "model.GGUF")
    assert path.read_bytes()[:4] == b"GGUF"
    other.save(path)
    assert same_weights(path, other)


@pytest.mark.parametrize("content", [b"a film of the family", b"GGU", b"\0"])
def test_a_file_that_is_no_gguf_is_not_replaced(lm, tmp_path, content):
    path = tmp_path / "x.gguf"
    path.write_bytes(content)
    with pytest.raises(UserError, match="no GGUF file"):
        lm.save(path)
    assert path.read_bytes() == content
    (tmp_path / "folder.gguf").mkdir()
    with pytest.raises(UserError, match="a folder of this name"):
        lm.save(tmp_path / "folder.gguf")
    with pytest.raises(UserError, match="cannot be read"):
        load(tmp_path / "folder.gguf")
    path.write_bytes(b"")  # as tempfile makes it
    assert same_weights(lm.save(path), lm)


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_files_have_the_mode_of_the_umask(lm, tmp_path, umask):
    before = os.umask(umask)
    (tmp_path / "run").mkdir()
    try:
        saved = [lm.save(tmp_path / "new"), lm.save(tmp_path / "new"), lm.save(tmp_path / "x.gguf").parent]
        saved.append(checkpoint.save(tmp_path / "run", 3, lm.write_files, {"num_actions": 0}).path)
        (tmp_path / "plain").mkdir()
        save_model(lm.model, tmp_path / "plain")
    finally:
        os.umask(before)
    files = [file for folder in {*saved, tmp_path / "plain"} for file in folder.rglob("*") if file.is_file()]
    assert len(files) > 12
    assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o666 & ~umask}


@pytest.mark.parametrize("failing", [0, 1, 4])
def test_a_save_that_fails_in_the_middle_leaves_the_old_model(clone, other, monkeypatch, failing):
    before, calls, replace = contents(clone), [], os.replace

    def fail(source, target):
        if len(calls) == failing:
            monkeypatch.setattr(os, "replace", replace)
            raise OSError(28, "No space left on device")
        calls.append(target)
        replace(source, target)

    monkeypatch.setattr("nbllm.core.io.os.replace", fail)
    with pytest.raises(OSError, match="No space"):
        with replacing_model(clone) as folder:
            monkeypatch.setattr(os, "replace", replace)
            other.write_files(folder)
            monkeypatch.setattr(os, "replace", fail)
    assert contents(clone) == before


def test_a_folder_in_the_place_of_a_file_is_not_lost(clone, other):
    (clone / "generation_config.json").unlink()
    (clone / "generation_config.json").mkdir()
    (clone / "generation_config.json" / "thesis.tex").write_text("years")
    before = contents(clone)
    with pytest.raises(IsADirectoryError, match="generation_config"):
        other.save(clone)
    assert contents(clone) == before


def test_a_model_saved_over_the_files_that_it_was_opened_from(clone, lm):
    opened = load(clone)
    opened.save(clone)
    assert same_weights(clone, lm)
    ids = torch.tensor([[1, 2, 3]])
    theirs = AutoModelForCausalLM.from_pretrained(clone)
    torch.testing.assert_close(theirs(ids).logits, opened.model(ids), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("name", "module"), [("model", "nbllm.models.loading"), ("x.gguf", "nbllm.models.gguf.reading")]
)
def test_opening_tells_how_far_it_is(lm, tmp_path, monkeypatch, name, module):
    shown = []

    @contextlib.contextmanager
    def record(label, total, unit):
        bar = Bar()
        yield bar
        shown.append((label, total, unit, sum(bar.amounts), len(bar.amounts)))

    class Bar:
        def __init__(self):
            self.amounts = []

        def update(self, amount):
            self.amounts.append(amount)

    path = lm.save(tmp_path / name)
    monkeypatch.setattr(f"{module}.progress", record)
    load(path)
    total = sum(parameter.nbytes for parameter in lm.model.parameters())
    assert shown == [(f"opening {name}", total, "B", total, len(list(lm.model.parameters())))]
