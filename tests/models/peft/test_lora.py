"""LoRA on our networks against peft on transformers' models with the same weights."""

import copy
import json
import math

import peft
import pytest
import torch
import transformers

import nbllm as nb
from nbllm.core.errors import UserError, WeightsError
from nbllm.inference.runners.compiled_spec import is_computed
from nbllm.models.loading import save_model
from nbllm.models.network import build, build_without_weights
from nbllm.models.peft.adapter import Adapter, read_adapter
from nbllm.models.peft.files import read_peft, write_peft
from nbllm.models.presets import make_config
from nbllm.nn.linear import Linear

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")  # within peft
TINY = {"vocab_size": 61, "hidden_size": 16, "num_layers": 2, "num_heads": 4, "intermediate_size": 24}
FAMILIES = {
    "llama": ("AutoModelForCausalLM", ["q_proj", "v_proj"], {"num_kv_heads": 2}),
    "gpt2": ("AutoModelForCausalLM", ["c_attn"], {}),
    "gpt_neox": ("AutoModelForCausalLM", ["query_key_value", "dense_h_to_4h"], {"rotary_fraction": 0.5}),
    "bloom": ("AutoModelForCausalLM", ["query_key_value"], {"intermediate_size": 64}),
    "bert": ("AutoModelForMaskedLM", ["query", "value", "output.dense"], {}),
    "t5": ("AutoModelForSeq2SeqLM", ["q", "v", "wo"], {"num_decoder_layers": 2}),
}  # fmt: skip
IDS = torch.tensor([[3, 7, 5, 9, 11, 4]])


def make(family: str):
    return build(make_config(family, **{**TINY, **FAMILIES[family][2]}), seed=1).eval()


def theirs_of(model, family: str, folder):
    folder.mkdir()
    save_model(model, folder)
    return getattr(transformers, FAMILIES[family][0]).from_pretrained(folder).eval()


def logits(model, family: str):
    pair = family == "t5"
    out = model(IDS, decoder_input_ids=IDS[:, :4]) if pair else model(IDS)
    return out.logits if hasattr(out, "logits") else out


def randomize(module) -> None:
    drawn = torch.Generator().manual_seed(5)
    for name, parameter in sorted(module.named_parameters()):
        if "lora_" in name:
            parameter.data = torch.randn(parameter.shape, generator=drawn) * 0.2


@pytest.mark.parametrize("stabilized", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_peft_adapters_compute_the_same_here(family, stabilized, tmp_path):
    """Logits and gradients of an adapter that peft has made, and of ours read by peft again."""
    model = make(family)
    settings = peft.LoraConfig(
        r=3, lora_alpha=5, target_modules=FAMILIES[family][1], use_rslora=stabilized,
        fan_in_fan_out=family == "gpt2",
    )  # fmt: skip
    theirs = peft.get_peft_model(theirs_of(model, family, tmp_path / "base"), settings).eval()
    randomize(theirs)
    theirs.save_pretrained(tmp_path / "theirs")
    before = logits(model, family)
    adapter = read_peft(model, tmp_path / "theirs", guard=lambda: None)

    expected, found = logits(theirs, family), logits(model, family)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert (found - before).abs().max() > 1e-3
    expected.square().sum().backward()
    found.square().sum().backward()
    squares = sum(p.grad.square().sum() for n, p in theirs.named_parameters() if "lora_B" in n)
    ours = sum(p.grad.square().sum() for n, p in adapter.parameters().items() if n.endswith("lora_b"))
    torch.testing.assert_close(ours, squares, rtol=1e-4, atol=1e-5)
    assert {n for n, p in model.named_parameters() if p.grad is not None} == adapter.parameters().keys()
    if family in ("llama", "bert", "t5"):  # no fused tensors: one update for one
        assert adapter.num_parameters == theirs.get_nb_trainable_parameters()[0]

    write_peft(model, adapter, tmp_path / "ours", base="")
    base = getattr(transformers, FAMILIES[family][0]).from_pretrained(tmp_path / "base")
    again = peft.PeftModel.from_pretrained(base, tmp_path / "ours").eval()
    torch.testing.assert_close(logits(again, family), found, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox"])
def test_a_part_of_a_fused_tensor_reaches_peft(family, tmp_path):
    model = make(family)
    adapter = Adapter(model, nb.LoRA(rank=2, targets=("query", "value", "down"), rank_stabilized=True))
    randomize(model)
    found = logits(model, family)
    write_peft(model, adapter, tmp_path / "ours", base="")
    adapter.detach()
    theirs = peft.PeftModel.from_pretrained(
        theirs_of(model, family, tmp_path / "base"), tmp_path / "ours"
    ).eval()
    torch.testing.assert_close(logits(theirs, family), found, atol=1e-5, rtol=1e-5)
    read_peft(model, tmp_path / "ours", guard=lambda: None)
    torch.testing.assert_close(logits(model, family), found, atol=1e-5, rtol=1e-5)


def test_switched_off_detached_and_unmerged_the_model_is_as_it_was():
    model = make("llama")
    state = copy.deepcopy(model.state_dict())
    plain = model(IDS)
    names = [name for name, _ in model.named_parameters()]
    adapter = Adapter(model, nb.LoRA(rank=4, targets=("query", "up", "down")))
    adapter.initialize(seed=0)
    torch.testing.assert_close(model(IDS), plain, atol=1e-6, rtol=1e-6)  # lora_b is zero
    assert [n for n, _ in model.named_parameters() if not n.endswith(("lora_a", "lora_b"))] == names
    assert not model.embedding.weight.requires_grad
    randomize(model)
    adapted = model(IDS)
    assert (adapted - plain).abs().max() > 1e-2

    with adapter.disabled():
        assert torch.equal(model(IDS), plain)
        assert type(model.blocks[0].attention.query) is Linear and model.embedding.weight.requires_grad
    assert torch.equal(model(IDS), adapted)
    adapter.merge()
    torch.testing.assert_close(model(IDS), adapted, atol=1e-5, rtol=1e-5)
    adapter.unmerge()
    assert torch.equal(model(IDS), adapted)
    adapter.merge().off()
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in state.items())
    adapter.on().detach()
    assert torch.equal(model(IDS), plain) and model.state_dict().keys() == state.keys()
    with pytest.raises(UserError, match="detached"):
        adapter.on()


def test_it_moves_with_the_model_while_it_is_off():
    model = make("llama")
    adapter = Adapter(model, nb.LoRA())
    adapter.off()
    model.double()
    adapter.on()
    assert model(IDS).dtype == torch.float64
    model.float()
    adapter.off()
    assert model(IDS).dtype == torch.float32


@pytest.mark.parametrize("targets", [("query",), ("key",), ("gate",), ("down",), ("output",)])
def test_no_fast_path_computes_without_it(targets):
    """Joined query, key and value, fused feed-forward parts and the decoding kernel read weights without a call."""
    model = make("llama")
    model(IDS)
    assert is_computed(model)
    plain = model(IDS)
    adapter = Adapter(model, nb.LoRA(targets=targets))
    randomize(model)
    assert not is_computed(model)
    assert (model(IDS) - plain).abs().max() > 1e-3
    adapter.off()
    assert is_computed(model) and torch.equal(model(IDS), plain)


def test_gelu_feed_forward_is_not_fused_around_it():
    model = make("gpt2")
    with torch.no_grad():
        plain = model(IDS)
        adapter = Adapter(model, nb.LoRA(targets=("up",)))
        randomize(model)
        adapted = model(IDS)
        assert (adapted - plain).abs().max() > 1e-3
        adapter.merge()
        torch.testing.assert_close(model(IDS), adapted, atol=1e-5, rtol=1e-5)


def test_updates_are_merged_in_float32():
    """In bfloat16 1 + .003 is 1, but two of them together are 1.0078125."""
    layer = torch.nn.Module()
    layer.only = Linear(1, 1, bias=False, dtype=torch.bfloat16)
    layer.only.weight.data.fill_(1.0)
    adapter = Adapter(layer, nb.LoRA(rank=2, alpha=2, targets=("only",)))
    adapter.load(
        {
            "only.lora_a": torch.tensor([[1.0], [1.0]]),
            "only.lora_b": torch.tensor([[0.003, 0.003]]),
        }
    )
    adapter.merge()
    assert layer.only.weight.item() == 1.0078125
    adapter.unmerge()
    assert layer.only.weight.item() == 1.0


def test_conv1d_layout(tmp_path):
    """A = [1 2], B = [1 0 3]^T: the delta of a layer with weights (out, in) is B A, however a family stores it."""
    layer = torch.nn.Module()
    layer.only = Linear(2, 3, bias=False)
    layer.only.weight.data.zero_()
    adapter = Adapter(layer, nb.LoRA(rank=1, alpha=1, targets=("only",)))
    adapter.load(
        {"only.lora_a": torch.tensor([[1.0, 2.0]]), "only.lora_b": torch.tensor([[1.0], [0.0], [3.0]])}
    )
    assert layer.only(torch.ones(2)).tolist() == [3, 0, 9]
    adapter.merge()
    assert layer.only.weight.tolist() == [[1, 2], [0, 0], [3, 6]]
    adapter.unmerge()
    assert not layer.only.weight.any()


@pytest.mark.parametrize(
    ("preset", "targets", "count"),
    [("llama-7b", ("query", "value"), 4_194_304), ("gpt2", ("query", "value"), 294_912)],
)
def test_published_counts(preset, targets, count):
    """LLaMA-7B's is published; of GPT-2 q and v alone have as many as peft's fused c_attn."""
    model = build_without_weights(make_config(preset))
    assert Adapter(model, nb.LoRA(rank=8, targets=targets)).num_parameters == count


def test_checkpoints_hold_it_to_the_bit(tmp_path):
    model = make("gpt2")
    adapter = Adapter(model, nb.LoRA(rank=2, targets=("query", "down")))
    randomize(model)
    adapted = model(IDS)
    adapter.write(tmp_path)
    adapter.detach()
    assert read_adapter(model, tmp_path).config == nb.LoRA(rank=2, targets=("query", "down"))
    assert torch.equal(model(IDS), adapted)
    assert read_adapter(make("gpt2"), tmp_path / "nowhere") is None


def test_bad_files_are_refused_by_name(tmp_path):
    model = make("llama")
    adapter = Adapter(model, nb.LoRA(rank=2))
    write_peft(model, adapter, tmp_path / "ours", base="")
    adapter.detach()
    path = tmp_path / "ours" / "adapter_config.json"
    good = json.loads(path.read_text())
    for change, said in (
        ({"peft_type": "IA3"}, "IA3"),
        ({"use_dora": True}, "use_dora"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"bias": "all"}, "bias"),
        ({"init_lora_weights": "pissa"}, "pissa"),
        ({"r": 3}, "rank 2"),
        ({"r": "many"}, "rank 2"),
        ({"lora_alpha": math.nan}, "alpha"),
    ):
        path.write_text(json.dumps({**good, **change}))
        with pytest.raises(WeightsError, match=said):
            read_peft(model, tmp_path / "ours", guard=lambda: None)
    path.write_text(json.dumps(good))
    with pytest.raises(WeightsError, match="does not belong to this model"):
        read_peft(make("gpt2"), tmp_path / "ours", guard=lambda: None)
    assert not any("lora" in name for name, _ in model.named_parameters())
    with pytest.raises(WeightsError, match="no adapter_config.json"):
        read_peft(model, tmp_path, guard=lambda: None)


def test_names_with_a_compilers_prefix_load_fully(tmp_path):
    from safetensors.torch import load_file, save_file

    model = make("llama")
    adapter = Adapter(model, nb.LoRA(rank=2))
    randomize(model)
    adapted = model(IDS)
    write_peft(model, adapter, tmp_path / "ours", base="")
    adapter.detach()
    file = tmp_path / "ours" / "adapter_model.safetensors"
    renamed = {
        n.replace("base_model.model.", "base_model.model._orig_mod."): t for n, t in load_file(file).items()
    }
    save_file(renamed, file)
    read_peft(model, tmp_path / "ours", guard=lambda: None)
    assert torch.equal(model(IDS), adapted)


def test_bad_settings_are_refused():
    for settings in ({"rank": 0}, {"alpha": -1}, {"targets": ()}, {"alpha": math.inf}):
        with pytest.raises(UserError):
            nb.LoRA(**settings)
    model = make("llama")
    with pytest.raises(UserError, match=r"(?s)no linear layer 'nothing'.*gate"):
        Adapter(model, nb.LoRA(targets=("nothing",)))
    Adapter(model, nb.LoRA())
    with pytest.raises(UserError, match=r"no linear layer|adapter already"):
        Adapter(model, nb.LoRA())
