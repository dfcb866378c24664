from pathlib import Path

import datasets
import pytest

from nbllm.data import load, split
from nbllm.data.provenance import source_of


def test_what_was_loaded_says_where_it_is_from_and_its_parts_too(tmp_path):
    path = tmp_path / "input.txt"
    path.write_text("To be, or not to be.")
    assert "input.txt" in source_of(load(path))
    text = load("pydocs")
    assert source_of(text).startswith("pydocs") and source_of(split(text, 0.1)[1]) == source_of(text)


@pytest.mark.parametrize(
    "data, source",
    [
        ("/home/somebody/input.txt", "input.txt"), (Path("a/b.csv"), "b.csv"), (["a text"], ""), (None, ""),
        (datasets.Dataset.from_dict({"text": ["a"]}), ""),
    ],
)  # fmt: skip
def test_of_a_path_only_its_name_is_told(data, source):
    assert source_of(data) == source
