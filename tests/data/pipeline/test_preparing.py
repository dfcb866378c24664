import datasets
import pytest

import nbllm as nb
from nbllm.core.errors import UserError
from nbllm.data.pipeline.preparing import recipe
from nbllm.data.quality.presets import PRESETS
from tests.data.pipeline.example_steps import CutLines, Length


def test_text_is_prepared_by_the_name_of_its_rules():
    raw = nb.data.load("pydocs")
    clean = nb.data.prepare(raw, "gopher")
    assert isinstance(clean, datasets.Dataset)
    assert 0 < len(clean) < len(raw)
    assert set(clean["source"]) < set(raw["source"])
    assert clean.funnel.raw.documents == len(raw)
    assert set(clean.ledger["step"]) <= {count.step for count in clean.funnel.counts}
    assert "near" in str(clean.prepared.reports).lower()
    assert nb.data.prepare(raw, "gopher").prepared.folder == clean.prepared.folder
    assert clean.at({}).kept.documents == len(clean)


def test_a_prepared_data_set_is_packed_and_transformed_like_any_other(tmp_path):
    clean = nb.data.prepare(["one two", "x", "three # four"], [Length(3), CutLines()], out=tmp_path)
    assert clean["text"][:] == ["one two", "three # four"]
    assert clean.select([1])["text"][:] == ["three # four"]
    assert clean.map(lambda row: {"length": len(row["text"])})["length"][:] == [7, 12]
    assert clean.filter(lambda row: "one" in row["text"])["text"][:] == ["one two"]
    tokenizer = nb.data.train_tokenizer(clean, kind="byte")
    assert len(nb.data.pack(clean, tokenizer)) > 0
    assert nb.data.load(clean)["text"][:] == clean["text"][:]


def test_what_a_pipeline_wrote_is_loaded_and_prepared_again_from_its_folder(tmp_path):
    texts = ["one two", "x", "three # four"]
    nb.data.Pipeline([Length(3)]).run(texts, tmp_path / "a")
    loaded = nb.data.load(tmp_path / "a")
    assert loaded["text"][:] == ["one two", "three # four"]
    assert set(loaded.ledger["rule"]) == {"long enough"}
    again = nb.data.prepare(tmp_path / "a", [Length(8)])
    assert again["text"][:] == ["three # four"]
    assert again["source"][:] == loaded["source"][1:]
    assert nb.data.split(tmp_path / "a", 0.5)[0]["text"][0] in texts


def test_tokens_are_counted_where_a_tokenizer_is_given(tmp_path):
    tokenizer = nb.data.train_tokenizer(["a"], kind="byte")
    clean = nb.data.prepare(["ab 12", "abc # x"], [CutLines()], out=tmp_path, tokenizer=tokenizer)
    (read, cut) = clean.funnel.counts
    assert (read.left.tokens, cut.left.tokens) == (12, 13)  # a token a byte, and 12 became <N>
    assert "counted by a tokenizer" in clean.funnel.tokens


def test_files_and_what_load_takes_are_prepared(tmp_path):
    (tmp_path / "a.txt").write_text("one\n\ntwo\n")
    clean = nb.data.prepare(tmp_path / "a.txt", [Length(2)], sample_by="paragraph")
    assert clean["text"][:] == ["one", "two"]
    rows = [{"body": "three"}, {"body": "x"}]
    assert nb.data.prepare(rows, [Length(2)], column="body")["text"][:] == ["three"]


def test_every_name_of_rules_is_a_recipe():
    for name in PRESETS:
        assert len(recipe(name)) > 2
    with pytest.raises(UserError, match="fineweb"):
        nb.data.prepare(["a"], "finewebb")
