"""The table of presets: whole, counted as a model is, cited."""

import pytest

import nbllm as nb
from nbllm.core.errors import UserError
from nbllm.models.network import build_without_weights
from nbllm.models.preset_list import HEADER, SOURCES
from nbllm.models.presets import PRESETS


@pytest.fixture(scope="module")
def presets():
    return nb.presets()


def test_every_preset_stands_in_it_with_its_source(presets):
    assert sorted(preset.name for preset in presets) == sorted(PRESETS)
    assert all(preset.source for preset in presets)
    by_name = {preset.name: preset for preset in presets}
    assert by_name["llama-7b"].source == SOURCES["llama-7b"] != by_name["llama"].source
    assert by_name["gpt2"].num_parameters == 124_439_808


def test_parameters_are_those_of_the_whole_model(presets):
    for preset in presets:
        if preset.config.num_layers <= 24:
            assert build_without_weights(preset.config).num_parameters == preset.num_parameters, preset.name


def test_it_is_shown_as_text_and_html(presets):
    lines = repr(presets).splitlines()
    assert lines[0].split() == list(HEADER) and len(lines) == 1 + len(presets)
    (mistral,) = [line for line in lines if line.startswith("mistral-7b")]
    assert (
        mistral.split()[1:]
        == "mistral decoder 32 4,096 32 (8) 32,768 7.24 B Jiang et al. 2023, arXiv:2310.06825".split()
    )
    (t5,) = [line for line in lines if line.startswith("t5-small")]
    assert "encoder-decoder  6 + 6" in t5
    (rwkv,) = [line for line in lines if line.startswith("rwkv-4-14b")]
    assert " recurrent " in rwkv and " 14.1 B " in rwkv
    html = presets._repr_html_()
    assert html.count("<tr>") == 1 + len(presets) and "<th" in html


def test_a_family_alone(presets):
    assert {preset.config.family for preset in nb.presets("bert")} == {"bert"}
    assert repr(nb.presets(family="gpt2")[:2]).count("\n") == 2
    with pytest.raises(UserError, match="family 'gpt3'.*\n.*gptj"):
        nb.presets("gpt3")
