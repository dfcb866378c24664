import pytest
import torch

from nbllm.models.scoring import token_log_probabilities


def reference(model, sequence):
    """One token at a time, each with all that fits before it."""
    out = []
    for place in range(1, len(sequence)):
        seen = torch.tensor([sequence[max(0, place - model.config.max_positions) : place]])
        out.append(model(seen)[0, -1].log_softmax(-1)[sequence[place]])
    return torch.stack(out).detach() if out else torch.zeros(0)


def sequences(*lengths):
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(97, (length,), generator=generator).tolist() for length in lengths]


@pytest.mark.parametrize("max_batch_tokens", [1, 40, 4096])
def test_each_sequence_as_if_alone(small, max_batch_tokens):
    texts = sequences(5, 0, 1, 2, 33, 17, 5)
    found = token_log_probabilities(small, texts, max_batch_tokens=max_batch_tokens)
    for text, values in zip(texts, found, strict=True):
        torch.testing.assert_close(values, reference(small, text), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("length", [33, 34, 48, 49, 64, 65, 100])
def test_with_a_stride_of_one_every_token_sees_a_full_context(small, length):
    (text,) = sequences(length)
    (found,) = token_log_probabilities(small, [text], stride=1)
    torch.testing.assert_close(found, reference(small, text), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("stride", [1, 7, 16, 32, None])
@pytest.mark.parametrize("length", [32, 33, 34, 50, 65, 97])
def test_windows_count_each_token_once_with_enough_context(small, stride, length):
    from nbllm.models.scoring import _windows

    step = 16 if stride is None else stride
    windows = list(_windows(length, 32, step))
    counted = []
    for start, first in windows:
        end = min(start + 32, length - 1)
        counted += range(first, end)
        assert start <= first < end
        if start:
            assert first - start >= 32 - step  # what the window shows before the first token that it counts
    assert counted == list(range(length - 1))
    (text,) = sequences(length)
    assert token_log_probabilities(small, [text], stride=stride)[0].shape == (length - 1,)
