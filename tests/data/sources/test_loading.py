from types import SimpleNamespace

import pytest
from datasets import Dataset, DatasetDict

from nbllm.core.errors import DataError, SkippedWarning, UserError
from nbllm.data import load
from nbllm.data.sources.collecting import Collector
from nbllm.data.sources.documents import Document
from nbllm.data.sources.omissions import Omissions


def test_a_data_set_keeps_its_columns_and_gets_its_text():
    given = Dataset.from_dict({"body": ["x", "y"], "n": [1, 2]})
    data = load(given)
    assert data["text"][:] == ["x", "y"]
    assert data["n"][:] == [1, 2]
    assert given.column_names == ["body", "n"]
    replaced = load(Dataset.from_dict({"text": ["old"], "body": ["new"]}), column="body")
    assert replaced.column_names == ["text"]
    assert replaced["text"][:] == ["new"]


def test_rows_of_a_data_set_without_text():
    given = Dataset.from_dict({"text": ["x", None, "y"]})
    with pytest.raises(DataError, match="holds nothing") as caught:
        load(given)
    assert "row 1" in str(caught.value.where)
    with pytest.warns(SkippedWarning, match="1 x no text in column"):
        data = load(given, on_error="skip")
    assert data["text"][:] == ["x", "y"]
    assert "Left out: 1 x" in data.info.description
    assert given.info.description == ""


def test_lists_of_strings():
    assert load(["x", "y"])["text"][:] == ["x", "y"]
    with pytest.raises(DataError, match="holds int"):
        load(["x", 3])
    with pytest.raises(DataError, match="surrogate"):
        load(["x\udc80"])


def test_other_objects_are_named():
    data = Dataset.from_dict({"text": ["x"]})
    with pytest.raises(DataError, match=r"splits 'train', 'test'.") as caught:
        load(DatasetDict(train=data, test=data))
    assert "load(data['train'])" in str(caught.value.hint)
    with pytest.raises(DataError, match="streamed"):
        load(data.to_iterable_dataset())
    with pytest.raises(DataError, match="cannot be loaded from int"):
        load(3)
    with pytest.raises(DataError, match="It has no rows"):
        load(Dataset.from_dict({"text": []}))
    with pytest.raises(UserError, match="subset='x' has no meaning"):
        load(data, subset="x")


def test_a_hub_name_without_network(monkeypatch):
    import huggingface_hub

    def dead(*args, **kwargs):
        raise ConnectionError("Name or service not known")

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", dead)
    with pytest.raises(DataError, match="the hub cannot be asked for it") as caught:
        load("nobody/no-such-data")
    assert "pydocs" in str(caught.value.hint)


def test_a_hub_name_that_does_not_exist(monkeypatch):
    import huggingface_hub
    from huggingface_hub.errors import RepositoryNotFoundError

    def missing(*args, **kwargs):
        raise RepositoryNotFoundError("404", response=SimpleNamespace(headers={}, request=None))

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", missing)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    with pytest.raises(DataError, match="no data set 'nobody/no-such-data' on the hub"):
        load("nobody/no-such-data")


def test_large_text_is_mapped_from_a_file(cache):
    documents = [Document(f"text {n} " * 100, str(n), str(n)) for n in range(500)]
    spilled = Collector(spill_bytes=1000)
    data = spilled.collect(iter(documents), Omissions("raise"))
    assert data["text"][:] == [document.text for document in documents]
    assert data.cache_files[0]["filename"].startswith(str(cache))
    in_memory = Collector().collect(iter(documents), Omissions("raise"))
    assert in_memory.cache_files == []
    assert in_memory["text"][:] == data["text"][:]
