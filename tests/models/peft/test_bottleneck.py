"""Bottleneck adapters against transformers' models with the same matrices, put in by hooks as AdapterHub has them."""

import pytest
import torch
import transformers
from torch.nn import functional as F

import nbllm as nb
from nbllm.models.loading import save_model
from nbllm.models.network import build, build_without_weights
from nbllm.models.peft.stack import AdapterStack
from nbllm.models.presets import make_config

TINY = {"vocab_size": 61, "hidden_size": 16, "num_layers": 2, "num_heads": 4, "intermediate_size": 24}
IDS = torch.tensor([[3, 7, 5, 9, 11, 4]])
MODELS = {"llama": transformers.AutoModelForCausalLM, "bert": transformers.AutoModelForMaskedLM}


def added(part, h):
    return F.linear(part.activation(F.linear(h, part.down, part.down_bias)), part.up, part.up_bias)


def hook_houlsby(theirs, family, parts):
    """After both parts of each layer, before the residual sum."""
    layers = theirs.model.layers if family == "llama" else theirs.bert.encoder.layer
    for number, layer in enumerate(layers):
        for name, place in (("attention", "self_attn"), ("feed_forward", "mlp")):
            part = parts[f"blocks.{number}.{name}"]

            def hook(module, given, out, part=part):
                if isinstance(out, tuple):
                    return out[0] + added(part, out[0]), *out[1:]
                return out + added(part, out)

            if family == "llama":
                getattr(layer, place).register_forward_hook(hook)
            else:
                (layer.attention.output if name == "attention" else layer.output).dense.register_forward_hook(
                    hook
                )


def hook_pfeiffer(theirs, family, parts):
    """At the end of each layer; where it is normalized, of the normalized sum, and normalized once more."""
    if family == "llama":
        for number, layer in enumerate(theirs.model.layers):
            part = parts[f"blocks.{number}"]
            layer.register_forward_hook(lambda module, given, out, part=part: out + added(part, out))
        return
    for number, layer in enumerate(theirs.bert.encoder.layer):
        part = parts[f"blocks.{number}.feed_forward"]

        def hook(module, given, out, part=part):
            hidden, stream = given
            branch = module.dense(hidden)
            return module.LayerNorm(branch + added(part, module.LayerNorm(branch + stream)) + stream)

        layer.output.register_forward_hook(hook)


@pytest.mark.parametrize("family", MODELS)
@pytest.mark.parametrize(
    ("method", "put"),
    [(nb.Houlsby(reduction_factor=4), hook_houlsby), (nb.Pfeiffer(reduction_factor=4), hook_pfeiffer)],
)
def test_logits_are_those_of_the_published_places(family, method, put, tmp_path):
    model = build(make_config(family, **TINY), seed=1).eval()
    save_model(model, tmp_path)
    theirs = MODELS[family].from_pretrained(tmp_path).eval()
    plain = model(IDS)
    adapter = AdapterStack(model).attach(method)
    torch.testing.assert_close(model(IDS), plain, atol=1e-5, rtol=1e-5)  # they begin as the identity
    for parameter in adapter.parameters().values():
        torch.nn.init.normal_(parameter, std=0.3, generator=torch.Generator().manual_seed(1))
    put(theirs, family, adapter.parts)
    torch.testing.assert_close(model(IDS), theirs(IDS).logits, atol=1e-5, rtol=1e-5)
    assert (model(IDS) - plain).abs().max() > 1e-3


def test_the_paper_s_count_for_bert():
    """Houlsby et al. 2019, section 2.1: 2md + d + m parameters for each of two adapters a layer; BERT-large, m = 64."""
    model = build_without_weights(make_config("bert", hidden_size=1024, num_layers=24, num_heads=16))
    adapter = AdapterStack(model).attach(nb.Houlsby(reduction_factor=16))
    m, d = 64, 1024
    assert adapter.num_parameters == 24 * 2 * (2 * m * d + d + m)
