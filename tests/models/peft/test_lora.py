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
from nbllm.models.loading import load_model, save_model
from nbllm.models.network import build, build_without_weights
from nbllm.models.peft.checkpoint import read_adapters, write_adapters
from nbllm.models.peft.files import read_peft, write_peft
from nbllm.models.peft.stack import AdapterStack
from nbllm.models.presets import make_config
from nbllm.models.vocabulary import resize_vocabulary
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
MT0_LARGE = {
    "vocab_size": 250112, "hidden_size": 1024, "num_layers": 24, "num_decoder_layers": 24, "num_heads": 16,
    "head_dim": 64, "intermediate_size": 2816, "gated": True,
}  # fmt: skip


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


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox"])
def test_a_part_of_a_fused_tensor_reaches_peft(family, tmp_path):
    model = make(family)
    adapter = AdapterStack(model).attach(
        nb.LoRA(rank=2, targets=("query", "value", "down"), rank_stabilized=True)
    )
    randomize(model)
    found = logits(model, family)
    write_peft(model, adapter, tmp_path / "ours", base="")
    adapter.detach()
    theirs = peft.PeftModel.from_pretrained(
        theirs_of(model, family, tmp_path / "base"), tmp_path / "ours"
    ).eval()
    torch.testing.assert_close(logits(theirs, family), found, atol=1e-5, rtol=1e-5)
    read_peft(AdapterStack(model), tmp_path / "ours")
    torch.testing.assert_close(logits(model, family), found, atol=1e-5, rtol=1e-5)


def test_switched_off_detached_and_unmerged_the_model_is_as_it_was():
    model = make("llama")
    state = copy.deepcopy(model.state_dict())
    plain = model(IDS)
    names = [name for name, _ in model.named_parameters()]
    adapter = AdapterStack(model).attach(nb.LoRA(rank=4, targets=("query", "up", "down")))
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
    adapter = AdapterStack(model).attach(nb.LoRA())
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
    adapter = AdapterStack(model).attach(nb.LoRA(targets=targets))
    randomize(model)
    assert not is_computed(model)
    assert (model(IDS) - plain).abs().max() > 1e-3
    adapter.off()
    assert is_computed(model) and torch.equal(model(IDS), plain)


def test_gelu_feed_forward_is_not_fused_around_it():
    model = make("gpt2")
    with torch.no_grad():
        plain = model(IDS)
        adapter = AdapterStack(model).attach(nb.LoRA(targets=("up",)))
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
    adapter = AdapterStack(layer).attach(nb.LoRA(rank=2, alpha=2, targets=("only",)))
    adapter.load(
        {
            "only.adapters.default.lora_a": torch.tensor([[1.0], [1.0]]),
            "only.adapters.default.lora_b": torch.tensor([[0.003, 0.003]]),
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
    adapter = AdapterStack(layer).attach(nb.LoRA(rank=1, alpha=1, targets=("only",)))
    adapter.load(
        {
            "only.adapters.default.lora_a": torch.tensor([[1.0, 2.0]]),
            "only.adapters.default.lora_b": torch.tensor([[1.0], [0.0], [3.0]]),
        }
    )
    assert layer.only(torch.ones(2)).tolist() == [3, 0, 9]
    adapter.merge()
    assert layer.only.weight.tolist() == [[1, 2], [0, 0], [3, 6]]
    adapter.unmerge()
    assert not layer.only.weight.any()


@pytest.mark.parametrize(
    ("preset", "shape", "settings", "count"),
    [
        ("llama-7b", {}, {}, 4_194_304),
        ("gpt2", {}, {"targets": ("query", "key", "value"), "fused": True}, 294_912),
        ("t5", MT0_LARGE, {}, 2_359_296),
    ],
)
def test_published_counts(preset, shape, settings, count):
    """Of LLaMA-7B (q, v), GPT-2 (c_attn) and mt0-large (q, v), rank 8."""
    model = build_without_weights(make_config(preset, **shape))
    assert AdapterStack(model).attach(nb.LoRA(rank=8, **settings)).num_parameters == count


def test_checkpoints_hold_it_to_the_bit(tmp_path):
    model = make("gpt2")
    adapter = AdapterStack(model).attach(nb.LoRA(rank=2, targets=("query", "down")))
    randomize(model)
    adapted = model(IDS)
    write_adapters([adapter], tmp_path)
    adapter.detach()
    stack = AdapterStack(model)
    read_adapters(stack, tmp_path)
    assert stack["default"].config == nb.LoRA(rank=2, targets=("query", "down"))
    assert torch.equal(model(IDS), adapted)
    read_adapters(other := AdapterStack(make("gpt2")), tmp_path / "nowhere")
    assert not other.adapters


def test_bad_files_are_refused_by_name(tmp_path):
    model = make("llama")
    adapter = AdapterStack(model).attach(nb.LoRA(rank=2))
    write_peft(model, adapter, tmp_path / "ours", base="")
    adapter.detach()
    path = tmp_path / "ours" / "adapter_config.json"
    good = json.loads(path.read_text())
    for change, said in (
        ({"peft_type": "XLORA"}, "XLORA"),
        ({"use_dora": True}, "missing"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"bias": "all"}, "bias"),
        ({"init_lora_weights": "pissa"}, "pissa"),
        ({"r": 3}, "rank 2"),
        ({"r": "many"}, "rank 2"),
        ({"lora_alpha": math.nan}, "alpha"),
    ):
        path.write_text(json.dumps({**good, **change}))
        with pytest.raises(WeightsError, match=said):
            read_peft(AdapterStack(model), tmp_path / "ours")
    path.write_text(json.dumps(good))
    with pytest.raises(WeightsError, match="does not belong to this model"):
        read_peft(AdapterStack(make("gpt2")), tmp_path / "ours")
    assert not any("lora" in name for name, _ in model.named_parameters())
    with pytest.raises(WeightsError, match="no adapter_config.json"):
        read_peft(AdapterStack(model), tmp_path)


def test_names_with_a_compilers_prefix_load_fully(tmp_path):
    from safetensors.torch import load_file, save_file

    model = make("llama")
    adapter = AdapterStack(model).attach(nb.LoRA(rank=2))
    randomize(model)
    adapted = model(IDS)
    write_peft(model, adapter, tmp_path / "ours", base="")
    adapter.detach()
    file = tmp_path / "ours" / "adapter_model.safetensors"
    renamed = {
        n.replace("base_model.model.", "base_model.model._orig_mod."): t for n, t in load_file(file).items()
    }
    save_file({f"shard0.{name}": tensor for name, tensor in renamed.items()}, file)
    with pytest.raises(WeightsError, match="does not belong"):  # all of it or nothing
        read_peft(AdapterStack(model), tmp_path / "ours")
    assert not any("lora" in name for name, _ in model.named_parameters())
    save_file(renamed, file)
    read_peft(AdapterStack(model), tmp_path / "ours")
    assert torch.equal(model(IDS), adapted)


def test_bad_settings_are_refused():
    for settings in ({"rank": 0}, {"alpha": -1}, {"targets": ()}, {"alpha": math.inf}):
        with pytest.raises(UserError):
            nb.LoRA(**settings)
    model = make("llama")
    with pytest.raises(UserError, match=r"(?s)no linear layer 'nothing'.*gate"):
        AdapterStack(model).attach(nb.LoRA(targets=("nothing",)))
    stack = AdapterStack(model)
    stack.attach(nb.LoRA(), name="first")
    with pytest.raises(UserError, match="'first' already"):
        stack.attach(nb.LoRA(), name="first")


class TestTiedHead:
    def test_an_update_of_the_head_leaves_the_embedding_alone(self, tmp_path):
        """peft#2018: E = I, head delta [[0, 1], [0, 0]], h = (1, 2): logits (3, 2), and the same once merged."""
        model = build(
            make_config("gpt2", **{**TINY, "vocab_size": 2, "hidden_size": 2, "num_heads": 1}), seed=1
        )
        model.embedding.weight.data = torch.eye(2)
        adapter = AdapterStack(model).attach(nb.LoRA(rank=1, alpha=1, targets=("head",)))
        adapter.parts[""].lora_a.data = torch.tensor([[0.0, 1.0]])
        adapter.parts[""].lora_b.data = torch.tensor([[1.0], [0.0]])
        h = torch.tensor([1.0, 2.0])
        assert model.logits(h).tolist() == [3, 2]
        adapter.merge()
        assert model.logits(h).tolist() == [3, 2] and not model.config.tie_embeddings
        assert torch.equal(model.embedding.weight, torch.eye(2))
        assert model.head.weight.tolist() == [[1, 1], [0, 1]]
        adapter.unmerge()
        assert model.head is None and model.config.tie_embeddings and model.logits(h).tolist() == [3, 2]
        adapter.merge().detach()
        save_model(model, tmp_path)
        assert load_model(tmp_path).logits(h).tolist() == [3, 2]
        theirs = transformers.GPT2LMHeadModel.from_pretrained(tmp_path)
        assert theirs.lm_head(h).tolist() == [3, 2] and torch.equal(
            theirs.transformer.wte.weight, torch.eye(2)
        )

    def test_an_update_of_the_embedding_leaves_the_head_alone(self):
        model = make("gpt2")
        plain = model.head_weight.detach().clone()
        adapter = AdapterStack(model).attach(nb.LoRA(rank=2, targets=("embedding", "head", "query")))
        randomize(model)
        adapted = model(IDS)
        adapter.merge()
        torch.testing.assert_close(model(IDS), adapted, atol=1e-5, rtol=1e-5)
        adapter.off()
        assert torch.equal(model.head_weight, plain) and is_computed(model)
        embedding = AdapterStack(model).attach(nb.LoRA(rank=2, targets="embedding"))
        randomize(model)
        adapted = model(IDS)
        embedding.merge()
        assert torch.equal(model.head_weight, plain)
        torch.testing.assert_close(model(IDS), adapted, atol=1e-5, rtol=1e-5)

    def test_an_encoder_cannot_be_untied(self):
        model = make("bert")
        adapter = AdapterStack(model).attach(nb.LoRA(rank=2, targets=("head",)))
        randomize(model)
        assert (model(IDS) - make("bert")(IDS)).abs().max() > 1e-3
        with pytest.raises(UserError, match="encoder"):
            adapter.merge()


def test_rows_of_a_grown_vocabulary_come_back(tmp_path):
    """peft#1457: a vocabulary of 61 grown to 63; the rows are in the file, or nothing of it is loaded."""
    model = make("gpt2")
    resize_vocabulary(model, 63)
    with torch.no_grad():
        model.embedding.weight[61:].normal_(generator=torch.Generator().manual_seed(1))
    adapter = AdapterStack(model).attach(nb.LoRA(rank=2))
    randomize(model)
    write_peft(model, adapter, tmp_path / "ours", base="", with_vocabulary=True)
    other = make("gpt2")
    read_peft(AdapterStack(other), tmp_path / "ours")
    ids = torch.tensor([[3, 62, 61]])
    assert torch.equal(other.embedding.weight, model.embedding.weight)
    torch.testing.assert_close(other(ids), model(ids), atol=1e-5, rtol=1e-5)

    theirs = theirs_of(make("gpt2"), "gpt2", tmp_path / "base")
    theirs.resize_token_embeddings(63)
    again = peft.PeftModel.from_pretrained(theirs, tmp_path / "ours").eval()
    torch.testing.assert_close(again(ids).logits, model(ids), atol=1e-5, rtol=1e-5)
    different = build(make_config("gpt2", **TINY), seed=2)
    resize_vocabulary(different, 63)
    with pytest.raises(WeightsError, match="another embedding"):
        read_peft(AdapterStack(different), tmp_path / "ours")
