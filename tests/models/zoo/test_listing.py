"""The table of published models."""

import dataclasses

import nbllm as nb
from nbllm.cli import main
from nbllm.models.zoo.listing import HEADER, ModelList, list_models


def test_the_package_is_callable_and_lists(cache, capsys):
    models = nb.models()
    assert nb.models.ModelConfig is nb.ModelConfig
    assert isinstance(models, ModelList) and isinstance(models[:1], ModelList)
    assert [model.name for model in models] == [row[0] for row in models.rows()]
    assert models[0].name == "smollm2-135m-instruct"
    assert main(["models"]) == 0
    assert capsys.readouterr().out == f"{models!r}\n"


def test_a_row_says_size_licence_purpose_and_whether_it_is_here(cache, index):
    source = index.put()
    model = dataclasses.replace(nb.models()[0], sources=(nb.models()[0].sources[0], source))
    (row,) = ModelList([model]).rows()
    facts = dict(zip(HEADER, row, strict=True))
    assert facts["parameters"] == "135 M" and facts["licence"] == "Apache-2.0"
    assert facts["what it does"] == "answers in a chat"
    assert facts["download"].startswith("269 MB (bfloat16) or 301 kB (quantized")
    assert facts["here"] == "no"
    source.fetch()
    assert ModelList([model]).rows()[0][-1] == "yes (quantized, Q4_1)"
    assert model.find() == source.path


def test_text_and_html_say_the_same_and_hostile_text_is_shown(cache):
    hostile = "<script>alert(1)</script>"
    model = dataclasses.replace(nb.models()[0], name=hostile, licence='"><img src=x>', sources=())
    models = ModelList([*nb.models(), model])
    html, text = models._repr_html_(), repr(models)
    assert "<script" not in html and "<img" not in html
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in html and hostile in text
    for row in list_models().rows():
        assert all(cell in html and cell in text for cell in row)
