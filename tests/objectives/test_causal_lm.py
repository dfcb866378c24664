from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from nbllm.models import Decoder, ModelConfig
from nbllm.objectives import CausalLM


@pytest.fixture(scope="module", params=[False, True], ids=["tied", "head-with-bias-bounded"])
def decoder(request):
    config = ModelConfig(
        family="gpt2", vocab_size=97, hidden_size=32, num_layers=2, num_heads=2, max_positions=16,
        tie_embeddings=not request.param, head_bias=request.param, logit_softcap=1.5 * request.param,
    )  # fmt: skip
    model = Decoder(config, seed=3)
    if request.param:
        torch.nn.init.normal_(model.head.bias, generator=torch.Generator().manual_seed(0))
    return model


@pytest.fixture(scope="module")
def windows():
    return np.random.default_rng(0).integers(0, 97, (3, 13))


def test_the_loss_and_its_gradients_are_those_of_torchs_cross_entropy(decoder, windows):
    objective = CausalLM()
    loss, count = objective.loss(decoder, objective.batch(windows, np.random.default_rng(0)))
    loss.backward()
    ours = {name: parameter.grad for name, parameter in decoder.named_parameters()}
    decoder.zero_grad()
    tokens = torch.from_numpy(windows)
    logits = decoder(tokens[:, :-1])
    theirs = F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten(), reduction="sum")
    theirs.backward()
    assert count == 3 * 12
    torch.testing.assert_close(loss, theirs, rtol=1e-5, atol=1e-4)
    for name, parameter in decoder.named_parameters():
        torch.testing.assert_close(ours[name], parameter.grad, rtol=1e-4, atol=1e-4, msg=name)


def test_a_network_that_knows_nothing_needs_the_logarithm_of_the_vocabulary_for_each_token(windows):
    class Ignorant:
        head_weight, head_bias, logit_softcap = torch.zeros(97, 8), None, 0.0

        def hidden(self, inputs):
            return torch.ones(*inputs.shape, 8)

    objective = CausalLM()
    loss, count = objective.loss(Ignorant(), objective.batch(windows, np.random.default_rng(0)))
    assert float(loss) / count == pytest.approx(math.log(97), rel=1e-6)
