"""Every method that peft has, on our networks against peft on transformers' models with the same weights."""

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file

import nbllm as nb
from nbllm.models.loading import save_model
from nbllm.models.network import build
from nbllm.models.peft.files import read_peft, write_peft
from nbllm.models.peft.stack import AdapterStack
from nbllm.models.presets import make_config

pytestmark = pytest.mark.filterwarnings(
    "ignore:.is_gradient_checkpointing:FutureWarning",  # within peft
    "ignore:`past_key_values` is deprecated:FutureWarning",
    "ignore:Model has `tie_word_embeddings:UserWarning",
    "ignore:Setting `save_embedding_layers`:UserWarning",
)
TINY = {"vocab_size": 61, "hidden_size": 16, "num_layers": 2, "num_heads": 4, "intermediate_size": 24}
FAMILIES = {
    "llama": ("AutoModelForCausalLM", {"num_kv_heads": 2}),
    "gpt2": ("AutoModelForCausalLM", {}),
    "gpt_neox": ("AutoModelForCausalLM", {"rotary_fraction": 0.5}),
    "bloom": ("AutoModelForCausalLM", {"intermediate_size": 64}),
    "bert": ("AutoModelForMaskedLM", {}),
    "t5": ("AutoModelForSeq2SeqLM", {"num_decoder_layers": 2}),
}
IDS = torch.tensor([[3, 7, 5, 9, 11, 4], [8, 2, 6, 1, 12, 13]])
LAYERS = {
    "llama": ["q_proj", "v_proj", "down_proj"],
    "gpt2": ["c_attn", "mlp.c_proj"],
    "gpt_neox": ["query_key_value", "dense_h_to_4h"],
    "bloom": ["query_key_value"],
    "bert": ["query", "value", "output.dense"],
    "t5": ["q", "v", "wo"],
}
SCALED = {
    "llama": (["k_proj", "v_proj", "down_proj"], ["down_proj"]),
    "gpt2": (["c_attn", "mlp.c_proj"], ["mlp.c_proj"]),
    "gpt_neox": (["query_key_value", "dense_4h_to_h"], ["dense_4h_to_h"]),
    "bloom": (["query_key_value", "mlp.dense_4h_to_h"], ["mlp.dense_4h_to_h"]),
    "bert": (["key", "value", "output.dense"], ["output.dense"]),
    "t5": (["k", "v", "wo"], ["wo"]),
}
KINDS = {"lora": {}, "rank-stabilized": {"use_rslora": True}, "dora": {"use_dora": True}}


def lora(family: str, **settings):
    fan = {"fan_in_fan_out": family == "gpt2" and "target_modules" not in settings}
    return peft.LoraConfig(**{"r": 3, "lora_alpha": 5, "target_modules": LAYERS[family], **fan, **settings})


def cases():
    for family in FAMILIES:
        for kind, settings in KINDS.items():
            yield pytest.param(family, lora(family, **settings), id=f"{family}-{kind}")
        targets, feed_forward = SCALED[family]
        scaled = peft.IA3Config(
            target_modules=targets, feedforward_modules=feed_forward, fan_in_fan_out=family == "gpt2"
        )
        yield pytest.param(family, scaled, id=f"{family}-ia3")
    patterns = {"rank_pattern": {"layers.0.self_attn.q_proj": 5}, "alpha_pattern": {"v_proj": 7}}
    yield pytest.param("llama", lora("llama", **patterns), id="llama-patterns")
    ends = ["embed_tokens", "lm_head", "q_proj"]
    yield pytest.param("llama", lora("llama", target_modules=ends), id="llama-embedding-and-head")
    yield pytest.param("llama", lora("llama", target_modules=ends, use_dora=True), id="llama-embedding-dora")
    yield pytest.param("gpt2", lora("gpt2", target_modules=["wte", "lm_head"]), id="gpt2-tied")


def theirs_of(family: str, folder):
    return getattr(transformers, FAMILIES[family][0]).from_pretrained(folder).eval()


def logits(model, family: str):
    pair = family == "t5"
    out = model(input_ids=IDS, decoder_input_ids=IDS[:, :4]) if pair else model(input_ids=IDS)
    return out.logits if hasattr(out, "logits") else out


@torch.no_grad()
def randomize(model) -> None:
    drawn = torch.Generator().manual_seed(5)
    for _, parameter in sorted(model.named_parameters()):
        if parameter.requires_grad:
            parameter += torch.randn(parameter.shape, generator=drawn) * 0.2


PROMPTS = {
    "prompt": (peft.PromptTuningConfig, {"num_transformer_submodules": 1}, nb.PromptTuning()),
    "p-mlp": (
        peft.PromptEncoderConfig,
        {"encoder_hidden_size": 5, "num_transformer_submodules": 1},
        nb.PTuning(num_virtual_tokens=3, encoder_hidden_size=5),
    ),
    "p-lstm": (
        peft.PromptEncoderConfig,
        {
            "encoder_hidden_size": 5,
            "encoder_reparameterization_type": "LSTM",
            "num_transformer_submodules": 1,
        },
        nb.PTuning(num_virtual_tokens=3, encoder_hidden_size=5, encoder="lstm"),
    ),
    "prefix": (peft.PrefixTuningConfig, {}, nb.PTuningV2(peft_order=True)),
    "prefix-projected": (
        peft.PrefixTuningConfig,
        {"prefix_projection": True, "encoder_hidden_size": 5},
        nb.PrefixTuning(num_virtual_tokens=3, encoder_hidden_size=5, peft_order=True),
    ),
}
TASKS = {"bert": "FEATURE_EXTRACTION", "t5": "SEQ_2_SEQ_LM"}


@pytest.mark.filterwarnings("ignore:for MLP:UserWarning")
@pytest.mark.parametrize("kind", PROMPTS)
@pytest.mark.parametrize("family", ["llama", "gpt2", "bloom", "t5", "bert"])
def test_virtual_tokens_are_the_same(family, kind, tmp_path):
    model = build(make_config(family, **{**TINY, **FAMILIES[family][1]}), seed=1).eval()
    (tmp_path / "base").mkdir()
    save_model(model, tmp_path / "base")
    make, given, ours = PROMPTS[kind]
    settings = make(num_virtual_tokens=3, task_type=TASKS.get(family, "CAUSAL_LM"), **given)
    theirs = peft.get_peft_model(theirs_of(family, tmp_path / "base"), settings).eval()
    randomize(theirs)
    theirs.save_pretrained(tmp_path / "theirs")
    stack = AdapterStack(model)
    before = logits(model, family)

    def of_text(out):
        return out[:, -IDS.shape[1] :] if family != "t5" else out

    expected = of_text(logits(theirs, family))
    opened = read_peft(stack, tmp_path / "theirs")
    torch.testing.assert_close(logits(model, family), expected, atol=1e-5, rtol=1e-5)
    assert (expected - before).abs().max() > 1e-5
    opened.detach()

    adapter = stack.attach(ours.replace(num_virtual_tokens=3))
    assert adapter.num_parameters == theirs.get_nb_trainable_parameters()[0]
    mine, other = list(adapter.parameters().values()), list(theirs.prompt_encoder.parameters())
    with torch.no_grad():
        for parameter, value in zip(mine, other, strict=True):
            parameter.copy_(value)
    found = logits(model, family)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    found.square().sum().backward()
    expected.square().sum().backward()
    for parameter, value in zip(mine, other, strict=True):
        torch.testing.assert_close(parameter.grad, value.grad, rtol=1e-5, atol=1e-5)

    write_peft(model, adapter, tmp_path / "ours", base="")
    again = peft.PeftModel.from_pretrained(theirs_of(family, tmp_path / "base"), tmp_path / "ours").eval()
    torch.testing.assert_close(of_text(logits(again, family)), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("family", "settings"), list(cases()))
def test_logits_gradients_counts_and_files_are_the_same(family, settings, tmp_path):
    """Of an adapter that peft has made, and of ours that peft reads again."""
    model = build(make_config(family, **{**TINY, **FAMILIES[family][1]}), seed=1).eval()
    (tmp_path / "base").mkdir()
    save_model(model, tmp_path / "base")
    theirs = peft.get_peft_model(theirs_of(family, tmp_path / "base"), settings).eval()
    randomize(theirs)
    theirs.save_pretrained(tmp_path / "theirs")
    before = logits(model, family)
    stack = AdapterStack(model)
    adapter = read_peft(stack, tmp_path / "theirs")

    expected, found = logits(theirs, family), logits(model, family)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert (found - before).abs().max() > 1e-5
    assert adapter.num_parameters == theirs.get_nb_trainable_parameters()[0]
    expected.square().sum().backward()
    found.square().sum().backward()
    write_peft(model, adapter, tmp_path / "ours", base="")
    again = peft.PeftModel.from_pretrained(theirs_of(family, tmp_path / "base"), tmp_path / "ours").eval()
    torch.testing.assert_close(logits(again, family), found, atol=1e-5, rtol=1e-5)

    # The gradients in the place of the parameters, so that the files name those that belong together.
    become_gradients(adapter.parameters().values())
    become_gradients(parameter for parameter in theirs.parameters() if parameter.requires_grad)
    write_peft(model, adapter, tmp_path / "our-gradients", base="")
    theirs.save_pretrained(tmp_path / "their-gradients")
    mine, other = (
        load_file(tmp_path / folder / "adapter_model.safetensors")
        for folder in ("our-gradients", "their-gradients")
    )
    # peft also writes the base of an adapted embedding.
    assert mine.keys() == {name for name in other if "base_layer" not in name}
    for name, gradient in ((name, other[name]) for name in mine):
        scale = float(gradient.abs().max())
        torch.testing.assert_close(mine[name], gradient, rtol=1e-5, atol=1e-5 * max(scale, 1.0), msg=name)


@torch.no_grad()
def become_gradients(parameters) -> None:
    for parameter in parameters:
        parameter.copy_(parameter.grad)
