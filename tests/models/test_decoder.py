import copy
import math
import random

import numpy as np
import pytest
import torch

from nbllm.core.errors import UserError
from nbllm.models import Decoder, make_config
from nbllm.models.network import build_without_weights


def test_a_token_never_sees_those_after_it(small, tokens):
    changed = tokens.clone()
    changed[:, 12:] = (changed[:, 12:] + 1) % 97
    before, after = small(tokens), small(changed)
    assert torch.equal(before[:, :12], after[:, :12])
    assert not torch.allclose(before[:, 12:], after[:, 12:])


@pytest.mark.parametrize("pieces", [[20], [1] * 20, [7, 1, 5, 7]])
def test_with_a_cache_as_without(small, tokens, pieces):
    cache = small.make_cache(3, max_length=20)
    with torch.inference_mode():
        got = torch.cat([small(part, cache=cache) for part in tokens.split(pieces, dim=1)], dim=1)
    torch.testing.assert_close(got, small(tokens).detach(), atol=1e-5, rtol=1e-5)
    assert cache.length == 20


@pytest.mark.parametrize("pieces", [[20], [12, 1, 1, 6]])
def test_left_padding_changes_nothing(small, tokens, pieces):
    lengths = [20, 13, 9]
    mask = torch.stack([torch.arange(20) >= 20 - length for length in lengths])
    cache = small.make_cache(3, max_length=20)
    out, end = [], 0
    with torch.inference_mode():
        for part in tokens.split(pieces, dim=1):
            end += part.shape[1]
            out.append(small(part, cache=cache, attention_mask=mask[:, :end]))
    got = torch.cat(out, dim=1)
    assert torch.isfinite(got).all()
    for row, length in enumerate(lengths):
        alone = small(tokens[row : row + 1, -length:])
        torch.testing.assert_close(got[row, -length:], alone[0].detach(), atol=1e-5, rtol=1e-5)


def test_explicit_positions_are_used(small, tokens):
    shifted = torch.arange(5, 25).expand(3, -1)
    if small.config.positions == "rotary":  # only distances count
        torch.testing.assert_close(small(tokens, positions=shifted), small(tokens), atol=1e-4, rtol=1e-4)
    else:
        assert not torch.allclose(small(tokens, positions=shifted), small(tokens))
    counted = torch.arange(20).expand(3, -1)
    torch.testing.assert_close(small(tokens, positions=counted), small(tokens))


def test_logits_are_the_head_of_hidden(small, tokens):
    expected = small.hidden(tokens) @ small.head_weight.T
    torch.testing.assert_close(small(tokens), expected)
    assert small.head_weight.shape == (97, 32)


def test_a_tied_head_is_the_embedding_and_counts_once(make_model):
    tied, untied = make_model("gpt2"), make_model("gpt2", tie_embeddings=False)
    assert tied.head_weight is tied.embedding.weight
    assert untied.head_weight is not untied.embedding.weight
    assert untied.num_parameters - tied.num_parameters == 97 * 32


def test_more_tokens_than_learned_positions(make_model):
    ids = torch.zeros(1, 33, dtype=torch.long)
    with pytest.raises(UserError, match="33 tokens were given; this model has 32 positions"):
        make_model("gpt2")(ids)
    padded = torch.arange(33)[None] >= 5  # 28 real tokens: they fit
    assert make_model("gpt2")(ids, attention_mask=padded).shape == (1, 33, 97)
    assert make_model("llama")(ids).shape == (1, 33, 97)  # rotary positions have no end


def test_an_attention_backend_is_the_models_choice(small, tokens):
    expected = small(tokens)
    small.attention_backend = "eager"
    torch.testing.assert_close(small(tokens), expected, atol=1e-5, rtol=1e-5)
    small.attention_backend = "none-such"
    with pytest.raises(UserError, match="none-such"):
        small(tokens)


def numpy_state():
    return np.random.get_state()[1].tolist()  # noqa: NPY002 - the global state is what must not move


def test_weights_come_from_the_seed_and_nothing_else(family):
    config = make_config(family, vocab_size=97, hidden_size=32, num_layers=2, num_heads=4)
    before = torch.get_rng_state(), random.getstate(), numpy_state()
    first = Decoder(config, seed=3).state_dict()
    after = torch.get_rng_state(), random.getstate(), numpy_state()
    assert torch.equal(before[0], after[0])
    assert before[1:] == after[1:]
    torch.manual_seed(99)
    again, other = Decoder(config, seed=3).state_dict(), Decoder(config, seed=4).state_dict()
    for name, weight in first.items():
        assert torch.equal(weight, again[name])
        assert weight.dim() == 1 or not torch.equal(weight, other[name])


def test_initial_weights_have_the_published_scale(family):
    model = Decoder(make_config(family, vocab_size=997, hidden_size=128, num_layers=8, num_heads=4))
    for name, weight in model.state_dict().items():
        if weight.dim() == 1:
            assert (weight == (0.0 if name.endswith("bias") else 1.0)).all(), name
        else:
            residual = name.endswith(("attention.output.weight", "feed_forward.down.weight"))
            assert float(weight.std()) == pytest.approx(
                0.02 / (math.sqrt(16) if residual else 1), rel=0.05
            ), name
            assert abs(float(weight.mean())) < 1e-3
    logits = model(torch.randint(997, (2, 16), generator=torch.Generator().manual_seed(0)))
    loss = -logits.log_softmax(-1)[..., 0].mean()
    assert float(loss.detach()) == pytest.approx(math.log(997), rel=0.02)


def test_a_model_without_weights_takes_no_memory(family):
    model = build_without_weights(make_config(family, vocab_size=97))
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}


def test_generating_does_not_spoil_later_training(small, tokens):
    with torch.inference_mode():
        small(tokens)
    small(tokens).sum().backward()
    assert all(parameter.grad is not None for parameter in small.parameters())


def test_the_model_can_be_copied_and_moved_to_bfloat16(small, tokens):
    twin = copy.deepcopy(small)
    assert torch.equal(twin(tokens), small(tokens))
    assert twin.to(torch.bfloat16)(tokens).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("family", "words"),
    [
        ("bloom", ["embedding_norm"]),
        ("gptj", ["the same + feed-forward", "in parallel to attention", "of 2 components", "interleaved"]),
        ("mistral", ["a window of 8"]),
        ("qwen3", ["queries and keys normalized"]),
    ],
)
def test_every_parameter_is_described(family, words, make_model):
    model = make_model(family, **({"sliding_window": 8} if family == "mistral" else {}))
    rows = model.describe()
    assert sum(row.parameters for row in rows) == model.num_parameters
    assert all(word in " ".join(f"{row.part} {row.what}" for row in rows) for word in words)
