"""What exists as a file is read as one, however it is named; a text is never trained on as a file's name."""

import datasets
import pandas as pd
import pyarrow as pa
import pytest

from nbllm.core.errors import DataError, UserError
from nbllm.data import load
from nbllm.data.sources.splits import split_of


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.csv").write_text("id,text\n1,first\n")
    pd.DataFrame({"text": ["second"]}).to_parquet("b.parquet")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "c.txt").write_text("third")
    return tmp_path


def test_a_list_of_files(folder):
    data = load(["a.csv", "b.parquet", "sub"])
    assert data["text"][:] == ["first", "second", "third"]
    assert data["source"][:] == ["a.csv:2", "b.parquet:1", "sub/c.txt"]
    assert load([folder / "a.csv"])["text"][:] == ["first"]
    assert load((folder / "sub" / "c.txt", "a.csv"))["text"][:] == ["third", "first"]


def test_patterns_and_the_home_folder(folder, monkeypatch):
    assert load("*.csv")["text"][:] == ["first"]
    assert load("**/*.txt")["text"][:] == ["third"]
    assert load(["*.csv", str(folder / "sub" / "?.txt")])["text"][:] == ["first", "third"]
    assert load("s*")["text"][:] == ["third"]  # only a folder matches
    monkeypatch.setenv("HOME", str(folder))
    assert load("~/sub/c.txt")["text"][:] == ["third"]
    assert load(["~/sub/c.txt"])["text"][:] == ["third"]
    (folder / "odd[1].txt").write_text("brackets")
    assert load("odd[1].txt")["text"][:] == ["brackets"]
    with pytest.raises(DataError, match="no file, folder or embedded source 'no\\*match.txt'"):
        load("no*match.txt")


@pytest.mark.parametrize("entries", [["a.csv", "none.csv"], ["a.csv", "some text"], ["none.jsonl.gz"]])
def test_a_list_with_a_file_that_is_not_there(folder, entries):
    with pytest.raises(DataError, match=f"There is no file or folder {entries[-1]!r}") as caught:
        load(entries)
    assert "entry" in str(caught.value.where)


def test_texts_stay_texts(folder):
    texts = ["See main.py and a.csv.", "node.js", "", "two\nlines"]
    assert load(texts)["text"][:] == texts
    assert load([{"text": "a.csv"}])["text"][:] == ["a.csv"]
    assert load(text for text in ("x", "y"))["text"][:] == ["x", "y"]


@pytest.mark.parametrize("url", ["https://example.org/a.txt", "s3://bucket/x.jsonl"])
def test_a_url_is_said_not_to_be_fetched(url):
    for source in (url, [url]):
        with pytest.raises(DataError, match="A URL is not fetched") as caught:
            load(source)
        assert "Download it" in str(caught.value.hint)


def test_a_page_of_the_hub_is_named_as_load_takes_it():
    with pytest.raises(DataError) as caught:
        load("https://huggingface.co/datasets/openai/gsm8k")
    assert "'openai/gsm8k'" in str(caught.value.hint)


def test_a_text_instead_of_a_name():
    with pytest.raises(DataError, match="not the name of a file") as caught:
        load("A whole\ntext")
    assert "[text]" in str(caught.value.hint)


def test_data_frames_tables_and_their_columns():
    frame = pd.DataFrame({"id": [1, 2], "kind": ["x", "y"], "text": ["one", "two"]}, index=["r", "s"])
    assert load(frame)["text"][:] == ["one", "two"]
    assert load(frame["kind"])["text"][:] == ["x", "y"]
    assert load(pa.table({"body": ["one"]}))["text"][:] == ["one"]
    category = pd.DataFrame({"n": [1, 2, 3], "body": pd.Categorical(["a", "b", "a"])})
    assert load(category)["text"][:] == ["a", "b", "a"]
    mixed = pd.DataFrame({"text": ["one", 2]})
    with pytest.raises(DataError, match="holds int where text should be"):
        load(mixed)
    with pytest.raises(DataError, match="no column 'text'. Columns: 'a', 'b'") as caught:
        load(pd.DataFrame({"a": ["x"], "b": ["y"]}))
    assert "column='...'" in str(caught.value.hint)
    assert load(pd.DataFrame({"a": ["x"], "b": ["y"]}), column="b")["text"][:] == ["y"]


def test_whatever_speaks_arrow():
    class Frame:
        """Only the interface that polars, DuckDB and others share."""

        def __arrow_c_stream__(self, requested_schema=None):
            return pa.table({"text": pa.array(["x"], pa.string_view())}).__arrow_c_stream__(requested_schema)

    assert load(Frame())["text"][:] == ["x"]


def test_polars():
    polars = pytest.importorskip("polars")
    frame = polars.DataFrame({"id": ["1"], "body": ["one"]})
    for source in (frame, frame.lazy(), frame["body"]):
        assert load(source)["text"][:] == ["one"]


def test_arrow_and_feather_files(tmp_path):
    frame = pd.DataFrame({"n": [1, 2], "text": ["one", "two"]})
    frame.to_feather(tmp_path / "a.feather")
    datasets.Dataset.from_pandas(frame).save_to_disk(tmp_path / "set")
    assert load(tmp_path / "a.feather")["text"][:] == ["one", "two"]
    (stream,) = (tmp_path / "set").glob("*.arrow")  # a stream, not a file
    assert load(stream)["text"][:] == ["one", "two"]
    (tmp_path / "cut.arrow").write_bytes((tmp_path / "a.feather").read_bytes()[:200])
    with pytest.raises(DataError, match="not a whole Arrow file"):
        load(tmp_path / "cut.arrow")


def test_data_sets_that_were_saved_to_disk(tmp_path):
    parts = {name: datasets.Dataset.from_dict({"n": [1], "text": [name]}) for name in ("train", "test")}
    parts["train"].save_to_disk(tmp_path / "one")
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "both")
    assert load(tmp_path / "one")["text"][:] == ["train"]
    assert load(tmp_path / "one").column_names == ["n", "text"]
    assert load(str(tmp_path / "both"))["text"][:] == ["train"]
    assert load(tmp_path / "both", split="test")["text"][:] == ["test"]
    with pytest.raises(UserError, match="no split 'dev'"):
        load(tmp_path / "both", split="dev")
    with pytest.raises(UserError, match="has no meaning"):
        load(tmp_path / "one", split="test")


def test_a_category_in_parquet_is_text(tmp_path):
    pd.DataFrame({"body": pd.Categorical(["a", "b"])}).to_parquet(tmp_path / "a.parquet")
    assert load(tmp_path / "a.parquet")["text"][:] == ["a", "b"]


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train.jsonl", "train"),
        ("data/train-00000-of-00001.parquet", "train"),
        ("test/0.txt", "test"),
        ("wiki.valid.txt", "validation"),
        ("dev.tsv", "validation"),
        ("contest.txt", None),
        ("trained.txt", None),
    ],
)
def test_the_split_that_a_name_tells(name, split):
    assert split_of(name) == split


def test_a_test_split_beside_the_training_text_is_not_read(tmp_path):
    for name in ("train", "test", "dev"):
        (tmp_path / f"{name}.jsonl").write_text(f'{{"text": "{name}"}}\n')
    (tmp_path / "more.jsonl").write_text('{"text": "more"}\n')
    data = load(tmp_path)
    assert sorted(data["text"]) == ["more", "train"]
    assert "Not read: test, validation." in data.info.description
    assert load(tmp_path, split="test")["text"][:] == ["test"]
    assert load(tmp_path, split="dev")["text"][:] == ["dev"]
    with pytest.raises(UserError, match="no files of a split 'none'"):
        load(tmp_path, split="none")
    (tmp_path / "train.jsonl").unlink()
    assert len(load(tmp_path)) == 3  # nothing says which of these would be the training text


CARD = """---
license: mit
configs:
- config_name: main
  data_files:
  - split: train
    path: main/train-*
  - split: test
    path: main/test-*
{more}---
# About this data set
"""
SECOND = """- config_name: other
  data_files: other.jsonl
"""


@pytest.fixture
def clone(tmp_path):
    (tmp_path / "README.md").write_text(CARD.format(more=""))
    (tmp_path / "main").mkdir()
    for name in ("train", "test"):
        (tmp_path / "main" / f"{name}-0.jsonl").write_text(f'{{"text": "{name}"}}\n')
    (tmp_path / "other.jsonl").write_text('{"text": "other"}\n')
    return tmp_path


def test_of_a_cloned_data_set_neither_card_nor_test_split_is_read(clone):
    data = load(clone)
    assert data["text"][:] == ["train"]
    assert "1 files of its split 'train' were read, 3 were not" in data.info.description
    assert load(clone, split="test")["text"][:] == ["test"]
    with pytest.raises(UserError, match="no split 'dev'") as caught:
        load(clone, split="dev")
    assert "'train', 'test'" in str(caught.value.hint)


def test_a_clone_with_several_subsets_asks_for_one(clone):
    (clone / "README.md").write_text(CARD.format(more=SECOND))
    with pytest.raises(DataError, match="main") as caught:
        load(clone)
    assert "subset=" in str(caught.value.hint)
    assert load(clone, subset="other")["text"][:] == ["other"]


def test_files_of_git_lfs_that_were_not_downloaded(clone):
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n"
    (clone / "main" / "train-0.jsonl").write_text(pointer)
    with pytest.raises(DataError, match="Git LFS pointer") as caught:
        load(clone)
    assert "git lfs pull" in str(caught.value.hint)


def test_settings_that_mean_nothing_here(folder):
    for settings in ({"split": "train"}, {"subset": "x"}):
        with pytest.raises(UserError, match="has no meaning"):
            load("a.csv", **settings)
    with pytest.raises(UserError, match="no text encoding 'utf-9'"):
        load("a.csv", encoding="utf-9")
    with pytest.raises(UserError, match="no text encoding 'base64'"):
        load("a.csv", encoding="base64")
    for wrong in (0, -1, True, 1.5):
        with pytest.raises(UserError, match="max_bytes must be"):
            load("a.csv", max_bytes=wrong)
