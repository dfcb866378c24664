"""The encoder-decoder itself: backends, sizes, and what it refuses."""

import pytest
import torch

from nbllm.core import machine
from nbllm.core.errors import UserError
from nbllm.models.config import ModelConfig
from nbllm.models.network import build, build_without_weights
from nbllm.models.presets import make_config
from nbllm.nn.attention_backends import BACKENDS, use_backend
from nbllm.nn.positions import POSITIONS

SHAPE = dict(
    vocab_size=97, hidden_size=48, num_layers=2, num_heads=4, max_positions=128, initializer_range=0.2
)


def make(family, **changes):
    return build(make_config(family, **{**SHAPE, **changes}))


def ids(*shape, seed=0):
    return torch.randint(97, shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("family", ["t5", "bart"])
def test_every_attention_backend_gives_the_same_logits_and_gradients(family, backend):
    """With padding in both texts, and without any; T5's bias has gradients, and its scores no scale."""
    model, source, target = make(family), ids(3, 70), ids(3, 37, seed=1)
    masks = {"attention_mask": torch.ones(3, 70).bool(), "decoder_attention_mask": torch.ones(3, 37).bool()}
    masks["attention_mask"][1, 50:] = False
    masks["decoder_attention_mask"][2, :9] = False
    for given in ({}, masks):
        found = []
        for name in ("eager", backend):
            with use_backend(name):
                model.zero_grad()
                logits = model(source, target, **given)
                real = given.get("decoder_attention_mask", torch.ones(3, 37).bool())
                logits[real].logsumexp(-1).sum().backward()
            found.append((logits[real], [weight.grad for weight in model.parameters()]))
        (expected, gradients), (logits, others) = found
        torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)
        for (name, _), one, other in zip(model.named_parameters(), gradients, others, strict=True):
            # A key's bias shifts all scores of a query alike: its gradient is zero but for rounding.
            assert float((one - other).norm()) < 1e-4 * max(float(one.norm()), 0.1), name


def test_grouped_heads_and_rotary_positions_which_no_family_has_yet():
    """Both stacks are of the one block; queries are rotated among themselves, and not against the source."""
    config = make_config("t5", **SHAPE).replace(positions="rotary", num_kv_heads=2, norm="layer_norm")
    model, source, target = build(config), ids(2, 9), ids(2, 11, seed=1)
    whole = model(source, target)
    cache = model.make_cache(2, 11)
    with torch.inference_mode():
        parts = [model(source, part, cache=cache) for part in target.split([5, 1, 5], dim=1)]
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, atol=1e-5, rtol=1e-5)
    reordered = model(source.flip(1), target)
    assert not torch.allclose(reordered, whole, atol=1e-3)


@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("placement", ["pre", "post", "sandwich"])
def test_every_position_scheme_and_placement_of_norms_with_a_cache(positions, placement):
    """The second text of each pair is padded on the left; a cache changes nothing."""
    made = ModelConfig(
        family="t5", network="encoder_decoder", positions=positions, norm_placement=placement, **SHAPE
    )
    model, source, target = build(made), ids(2, 9), ids(2, 11, seed=1)
    mask = torch.ones(2, 11).bool()
    mask[1, :4] = False
    whole = model(source, target, decoder_attention_mask=mask)
    alone = model(source[1:], target[1:, 4:])
    torch.testing.assert_close(whole[1, 4:], alone[0], atol=1e-5, rtol=1e-4)
    cache = model.make_cache(2, 11)
    with torch.inference_mode():
        parts = [
            model(source, part, decoder_attention_mask=mask[:, :end], cache=cache)
            for part, end in zip(target.split([6, 1, 4], dim=1), (6, 7, 11), strict=True)
        ]
    torch.testing.assert_close(torch.cat(parts, dim=1)[mask], whole[mask], atol=1e-5, rtol=1e-4)


def test_what_is_read_changes_all_and_what_comes_later_nothing():
    model, source, target = make("bart"), ids(1, 9), ids(1, 11, seed=1)
    whole = model(source, target)
    changed = target.clone()
    changed[0, 6:] = 5
    torch.testing.assert_close(model(source, changed)[:, :6], whole[:, :6])
    other = source.clone()
    other[0, -1] = (other[0, -1] + 1) % 97
    assert (model(other, target) - whole).abs().amax(-1).min() > 1e-4


def test_a_source_of_padding_alone_stays_finite():
    model = make("t5")
    mask = torch.zeros(2, 5, dtype=torch.long)
    assert torch.isfinite(model(ids(2, 5), ids(2, 4), attention_mask=mask)).all()


def test_sizes_are_checked_before_anything_is_built(monkeypatch):
    with pytest.raises(UserError, match="num_decoder_layers must be at most 10,000"):
        make_config("t5", num_decoder_layers=10_001)
    monkeypatch.setattr(machine, "memory_limit", lambda: 10_000_000)
    config = make_config("t5", **SHAPE, num_decoder_layers=9_000)
    with pytest.raises(UserError, match="parameters would take") as caught:
        build(config)
    assert caught.value.hint
    monkeypatch.setattr(
        machine, "memory_limit", lambda: 4 * build_without_weights(make_config("t5", **SHAPE)).num_parameters
    )
    make("t5")


@pytest.mark.parametrize(
    "setting, value",
    [
        ("sliding_window", 4),
        ("mask_head", True),
        ("token_types", 2),
        ("pooler", True),
        ("attention_softcap", 5.0),
    ],
)
def test_what_it_does_not_honour_is_refused_by_name(setting, value):
    config = make_config("t5", **SHAPE).replace(**{setting: value})
    with pytest.raises(UserError, match=setting):
        build_without_weights(config)


@pytest.mark.parametrize(
    "family, setting, value",
    [
        ("gpt2", "num_decoder_layers", 2),
        ("bert", "num_decoder_layers", 2),
        ("bert", "scale_head", True),
    ],
)
def test_decoders_and_encoders_refuse_what_they_have_not(family, setting, value):
    with pytest.raises(UserError, match=setting):
        build_without_weights(make_config(family, num_layers=1).replace(**{setting: value}))


def test_new_logits_are_as_large_with_a_tied_and_scaled_head_as_with_another():
    sizes = [
        float(make(name, initializer_range=0.02)(ids(2, 9), ids(2, 9)).detach().std())
        for name in ("t5", "flan-t5-small")
    ]
    assert 0.5 < sizes[0] / sizes[1] < 2
