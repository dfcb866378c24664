"""The likelihood of an encoder-decoder's targets against transformers' loss of each, one at a time."""

import pytest
import torch
import transformers

from nbllm.core.errors import UserError
from nbllm.models.loading import load_model
from nbllm.models.targets import target_likelihoods

START = 2
T5 = dict(vocab_size=60, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, dropout_rate=0.0)


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    config = transformers.T5Config(**T5, decoder_start_token_id=START)
    theirs = transformers.T5ForConditionalGeneration(config).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in theirs.parameters():
            if weight.dim() > 1:
                weight.normal_(0, 0.2, generator=generator)
    folder = tmp_path_factory.mktemp("t5")
    theirs.save_pretrained(folder)
    return theirs, load_model(folder)


@pytest.fixture(scope="module")
def texts():
    """Two sources with several targets of odd lengths, others with one, and one without any token."""
    generator = torch.Generator().manual_seed(1)

    def some(count):
        return torch.randint(3, 60, (count,), generator=generator).tolist()

    one, two = some(11), some(4)
    return [
        (one, some(3)), (two, some(1)), (one, some(1)), (some(17), some(6)), (two, some(9)), (one, []), (some(1), [7]),
    ]  # fmt: skip


@pytest.mark.parametrize("max_batch_tokens", [1, 30, 4096])
def test_it_is_transformers_loss_of_each(pair, texts, max_batch_tokens):
    theirs, ours = pair
    read = []
    hook = ours.encoder.register_forward_hook(lambda _, given, out: read.append(len(out)))
    try:
        found = target_likelihoods(ours, texts, start=START, max_batch_tokens=max_batch_tokens)
    finally:
        hook.remove()
    assert sum(read) == len({tuple(source) for source, target in texts if target})
    for (source, target), likelihoods in zip(texts, found, strict=True):
        assert len(likelihoods.values) == len(target)
        if target:
            with torch.no_grad():
                logits = theirs(input_ids=torch.tensor([source]), labels=torch.tensor([target])).logits[0]
            expected = logits.log_softmax(-1).gather(1, torch.tensor(target)[:, None])[:, 0]
            torch.testing.assert_close(likelihoods.values, expected, atol=1e-5, rtol=0)
            assert likelihoods.greedy == (logits.argmax(-1).tolist() == target)


def test_the_greedy_text_is_greedy(pair, texts):
    theirs, ours = pair
    source = texts[0][0]
    target = theirs.generate(torch.tensor([source]), max_new_tokens=4, do_sample=False)[0, 1:].tolist()
    other = [*target[:-1], (target[-1] + 1) % 60]
    found = target_likelihoods(ours, [(source, target), (source, other)], start=START)
    assert [each.greedy for each in found] == [True, False]


def test_a_token_that_the_model_lacks_is_refused(pair):
    with pytest.raises(UserError, match="beyond the model's vocabulary"):
        target_likelihoods(pair[1], [([60], [1])], start=START)
