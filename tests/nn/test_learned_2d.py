"""GLM's two positions of each token: with those of its paper's figure 2, and in a decoder."""

import pytest
import torch

from nbllm.core.errors import UserError
from nbllm.models.config import ModelConfig
from nbllm.models.network import build
from nbllm.nn.positions import Learned2DPositions, Places

# Du et al. 2022, figure 2(d): x1 x2 [M] x4 [M] | S x5 x6 S x3, whose blanks stand at 5 and 3.
IN_TEXT = torch.tensor([[1, 2, 3, 4, 5, 5, 5, 5, 3, 3]])
IN_BLANK = torch.tensor([[0, 0, 0, 0, 0, 1, 2, 3, 1, 2]])


def test_both_vectors_are_added():
    scheme = Learned2DPositions(8, 4)
    with torch.no_grad():
        for weight in scheme.parameters():
            weight.normal_(generator=torch.Generator().manual_seed(weight.shape[0]))
    tokens = torch.randn(1, 10, 4, generator=torch.Generator().manual_seed(0))
    made = scheme.embed(tokens, Places(IN_TEXT, 6, IN_BLANK))
    for place in range(10):
        expected = (
            tokens[0, place] + scheme.weight[IN_TEXT[0, place]] + scheme.span_weight[IN_BLANK[0, place]]
        )
        torch.testing.assert_close(made[0, place], expected)
    no_blank = scheme.embed(tokens[:, :8], Places(slice(0, 8), 8))
    same = scheme.embed(tokens[:, :8], Places(torch.arange(8)[None], 8, torch.zeros(1, 8, dtype=torch.long)))
    torch.testing.assert_close(no_blank, same)


def decoder(positions, network="prefix_decoder"):
    shape = {"vocab_size": 50, "hidden_size": 16, "num_layers": 2, "num_heads": 2, "max_positions": 12}
    return build(
        ModelConfig(family="gpt2", network=network, positions=positions, initializer_range=0.3, **shape)
    )


@pytest.mark.parametrize("network", ["decoder", "prefix_decoder"])
def test_a_decoder_reads_them_whole_as_step_by_step(network):
    model = decoder("learned_2d", network)
    ids = torch.randint(50, (1, 10), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        whole = model.hidden(ids, positions=IN_TEXT, span_positions=IN_BLANK)
        assert not torch.allclose(whole, model.hidden(ids, positions=IN_TEXT))
        cache = model.make_cache(1, 10)
        parts = [
            model.hidden(
                ids[:, part], positions=IN_TEXT[:, part], span_positions=IN_BLANK[:, part], cache=cache
            )
            for part in (slice(0, 6), slice(6, 7), slice(7, 10))
        ]
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, atol=1e-5, rtol=1e-5)


def test_what_has_no_place_is_refused():
    ids = torch.zeros(1, 10, dtype=torch.long)
    with pytest.raises(UserError, match='positions="learned_2d"'):
        decoder("learned").hidden(ids, positions=IN_TEXT, span_positions=IN_BLANK)
    with pytest.raises(UserError, match="filled by 13 tokens; this model has 12"):
        decoder("learned_2d").hidden(ids, positions=IN_TEXT, span_positions=IN_BLANK + 10)
