"""Our models against transformers': logits and gradients from the same weights, files read both ways."""

import copy

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from nbllm.core.errors import UserError
from nbllm.inference.config import SamplingConfig
from nbllm.inference.engine import generate_ids
from nbllm.models.families import FAMILIES
from nbllm.models.loading import load_model, save_model
from nbllm.models.network import build
from nbllm.models.presets import make_config
from nbllm.nn.mixture_of_experts import record_routing
from nbllm.objectives import CausalLM

from .conftest import TINY


def ids(vocab_size, *shape):
    return torch.randint(vocab_size, shape, generator=torch.Generator().manual_seed(1))


def gradients(logits, tokens, model):
    model.zero_grad(set_to_none=True)
    F.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten()).backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def by_file_names(values):
    """Tensors by the names of transformers' modules, by those of its files, where an expert has its own."""
    out = {}
    for name, value in values.items():
        place = name.replace(".mlp.gate.", ".block_sparse_moe.gate.").replace(
            ".mlp.experts", ".block_sparse_moe.experts"
        )
        if name.endswith("experts.gate_up_proj"):
            for expert, both in enumerate(value):
                gate, up = both.chunk(2)
                base = place.replace("gate_up_proj", str(expert))
                out |= {f"{base}.w1.weight": gate, f"{base}.w3.weight": up}
        elif name.endswith("experts.down_proj"):
            for expert, down in enumerate(value):
                out[f"{place.replace('down_proj', str(expert))}.w2.weight"] = down
        else:
            out[place] = value
    return out


def check_parity(reference, ours, tokens):
    """Logits to 1e-5; every gradient to 1e-4 of its norm, told apart by the reference's names."""
    theirs = reference(tokens, use_cache=False).logits
    logits = ours(tokens)
    torch.testing.assert_close(logits, theirs, atol=1e-5, rtol=0)
    expected = by_file_names(gradients(theirs, tokens, reference))
    got = gradients(logits, tokens, ours)
    rules = FAMILIES[ours.config.family].rules(ours.config)
    in_memory = {
        "embed_out.weight": "lm_head.weight"
    }  # transformers renames GPT-NeoX's head as it reads and writes
    named = {rule.source: in_memory.get(rule.source, rule.source) for rule in rules}
    assert set(named.values()) == set(expected)
    assert sorted(name for rule in rules for name in rule.targets) == sorted(got)
    for rule in rules:
        theirs = expected[named[rule.source]]
        parts = rule.split(theirs, [len(got[name]) for name in rule.targets])
        # A key's bias shifts all scores of a query alike: its gradient is zero but for rounding.
        scale = max(float(theirs.norm()), 1e-5)
        for name, part in zip(rule.targets, parts, strict=True):
            assert float((got[name] - part).norm()) < 1e-4 * scale, name


@pytest.mark.parametrize("shard_size", ["1GB", "60KB"])
def test_tiny_models(tiny, shard_size, tmp_path):
    tiny.save_pretrained(tmp_path, max_shard_size=shard_size)
    assert (shard_size == "1GB") == (tmp_path / "model.safetensors").exists()
    check_parity(tiny, load_model(tmp_path), ids(131, 2, 23))


@pytest.mark.parametrize("max_shard_bytes", [10**9, 60_000])
def test_transformers_opens_what_we_save(tiny, max_shard_bytes, tmp_path):
    tiny.save_pretrained(tmp_path / "theirs")
    ours = load_model(tmp_path / "theirs")
    (tmp_path / "ours").mkdir()
    save_model(ours, tmp_path / "ours", token_ids={"eos_token_id": 0}, max_shard_bytes=max_shard_bytes)
    reopened, report = AutoModelForCausalLM.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(report.values()), report
    assert type(reopened) is type(tiny)
    for (name, got), (_, expected) in zip(
        reopened.state_dict().items(), tiny.state_dict().items(), strict=True
    ):
        assert torch.equal(got, expected), name
    tokens = ids(131, 2, 23)
    assert torch.equal(reopened(tokens).logits, tiny(tokens).logits)
    assert load_model(tmp_path / "ours").config == ours.config


def positions_of(reference, mask):
    """transformers' position_ids, which not every family takes: OPT counts from 1 of padding, BLOOM has none."""
    if reference.config.model_type in ("bloom", "opt"):
        return {}
    return {"position_ids": (mask.cumsum(1) - 1).clamp(min=0)}


def test_left_padded_batches(tiny, tmp_path):
    tiny.save_pretrained(tmp_path)
    ours = load_model(tmp_path)
    tokens, mask = ids(131, 3, 12), torch.ones(3, 12, dtype=torch.long)
    mask[1, :5] = 0
    mask[2, :11] = 0
    theirs = tiny(tokens, attention_mask=mask, **positions_of(tiny, mask)).logits
    logits = ours(tokens, attention_mask=mask)
    given = ours(
        tokens, attention_mask=mask, positions=(mask.cumsum(1) - 1).clamp(min=0)
    )  # as generation does
    for each in (logits, given):
        assert torch.isfinite(each).all()
        torch.testing.assert_close(each[mask.bool()], theirs[mask.bool()], atol=1e-5, rtol=0)


def test_rows_of_opts_positions():
    model = build(
        make_config("opt", vocab_size=11, hidden_size=8, num_layers=1, num_heads=2, max_positions=6)
    )
    seen = []
    embed = model.positions.embed

    def keep(x, places):
        seen.append(places.on(x.device) + model.positions.offset)
        return embed(x, places)

    model.positions.embed = keep
    model(torch.ones(1, 5, dtype=torch.long), attention_mask=torch.tensor([[0, 0, 1, 1, 1]]))
    assert seen[0].tolist() == [[1, 1, 2, 3, 4]]
    model(torch.ones(1, 6, dtype=torch.long))
    with pytest.raises(UserError, match="7 tokens were given; this model has 6 positions"):
        model(torch.ones(1, 7, dtype=torch.long))


def test_with_a_cache_in_parts(tiny, tmp_path):
    """Odd lengths, beyond any sliding window, one token and many at a time; the second text is left-padded."""
    tiny.save_pretrained(tmp_path)
    ours = load_model(tmp_path)
    tokens, mask = ids(131, 2, 29), torch.ones(2, 29, dtype=torch.long)
    mask[1, :5] = 0
    theirs = tiny(tokens, attention_mask=mask, **positions_of(tiny, mask)).logits
    cache = ours.make_cache(2, 29)
    with torch.inference_mode():
        parts = [
            ours(part, cache=cache, attention_mask=mask[:, :end])
            for part, end in zip(tokens.split([13, 1, 1, 14], dim=1), (13, 14, 15, 29), strict=True)
        ]
    logits = torch.cat(parts, dim=1)
    torch.testing.assert_close(logits[mask.bool()], theirs[mask.bool()], atol=1e-5, rtol=0)


def test_greedy_generation(tiny, tmp_path):
    """As transformers' `generate`, for texts of two lengths at a time."""
    tiny.save_pretrained(tmp_path)
    ours = load_model(tmp_path)
    prompts = [ids(131, 1, 9)[0].tolist(), ids(131, 1, 4)[0].tolist()]
    expected = [
        tiny.generate(
            torch.tensor([prompt]), max_new_tokens=20, do_sample=False, eos_token_id=None, pad_token_id=0
        )[0, len(prompt) :].tolist()
        for prompt in prompts
    ]
    config = SamplingConfig(max_new_tokens=20, temperature=0)
    assert generate_ids(ours, prompts, config, eos_id=None) == expected


def test_every_family_of_decoders_is_held(shown_families):
    decoders = {name for name in FAMILIES if FAMILIES[name].fixed.get("network") == "decoder"}
    assert shown_families == decoders


def test_bfloat16_is_kept_and_near(tiny, tmp_path):
    half = copy.deepcopy(tiny).bfloat16()
    half.save_pretrained(tmp_path)
    ours = load_model(tmp_path)
    assert ours.embedding.weight.dtype == torch.bfloat16
    tokens = ids(131, 2, 23)
    exact = load_model(tmp_path, dtype=torch.float32)(tokens)
    our_error = (ours(tokens).float() - exact).norm() / exact.norm()
    their_error = (half(tokens).logits.float() - exact).norm() / exact.norm()
    assert our_error < 1.5 * their_error


def test_files_without_the_prefix_and_with_old_buffers(make_reference, tmp_path):
    """The hub's gpt2 holds the bare model's names and the causal masks as buffers."""
    reference = make_reference("gpt2", vocab_size=131, n_embd=48, n_layer=2, n_head=4, n_positions=64)
    reference.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    bare = {name.removeprefix("transformer."): tensor.clone() for name, tensor in tensors.items()}
    bare["h.0.attn.bias"] = torch.ones(1, 1, 64, 64)
    save_file(bare, tmp_path / "model.safetensors")
    tokens = ids(131, 2, 9)
    torch.testing.assert_close(load_model(tmp_path)(tokens), reference(tokens).logits, atol=1e-5, rtol=0)


LARGE = {
    "gpt2": {},
    "llama": dict(
        vocab_size=32000, hidden_size=768, intermediate_size=2048, num_hidden_layers=12,
        num_attention_heads=12, num_key_value_heads=4, tie_word_embeddings=True,
    ),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("family", sorted(LARGE))
def test_models_of_124m_shape(family, make_reference, tmp_path):
    """Both families at the width and depth of GPT-2 124M, with the published models' own initial scale."""
    reference = make_reference(family, **LARGE[family])
    with torch.no_grad():
        for weight in reference.parameters():
            if weight.dim() > 1:
                weight.mul_(0.4)  # 0.05 to the published 0.02
    reference.save_pretrained(tmp_path)
    ours = load_model(tmp_path)
    assert ours.num_parameters == sum(p.numel() for p in reference.parameters()) > 99e6
    check_parity(reference, ours, ids(reference.config.vocab_size, 1, 24))


def test_the_loss_of_experts_loads_and_its_gradient(make_reference, tmp_path):
    """As transformers adds it to the mean loss; a training step adds it likewise, times the tokens, to the sum."""
    settings = {**TINY["mixtral"], "router_aux_loss_coef": 0.3, "output_router_logits": True}
    reference = make_reference("mixtral", **settings)
    reference.save_pretrained(tmp_path)
    ours, tokens = load_model(tmp_path), ids(131, 2, 23)
    theirs = reference(tokens, labels=tokens, use_cache=False)
    theirs.loss.backward()
    objective = CausalLM()
    loss, count = objective.loss(ours, objective.batch(tokens.numpy(), None))
    with (
        record_routing() as routing
    ):  # the last token is read there as well: it predicts nothing, but is routed
        ours(tokens)
    added = ours.auxiliary_loss(routing)
    torch.testing.assert_close(added, 0.3 * theirs.aux_loss)
    total = (loss + added * count) / count
    torch.testing.assert_close(total, theirs.loss)
    total.backward()
    routers = [layer.mlp.gate.weight.grad for layer in reference.model.layers]
    for block, expected in zip(ours.blocks, routers, strict=True):
        torch.testing.assert_close(block.feed_forward.router.weight.grad, expected, rtol=1e-3, atol=1e-6)
