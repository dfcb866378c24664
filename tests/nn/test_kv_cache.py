import pytest
import torch

from nbllm.core.errors import UserError
from nbllm.nn.kv_cache import KVCache


def tokens(count, value):
    return torch.full((2, 1, count, 4), float(value))


def test_it_returns_everything_so_far():
    cache = KVCache(2, 2, 1, 4, max_length=5)
    for layer in range(2):
        cache.update(layer, tokens(2, layer), tokens(2, 10 + layer))
    cache.advance(2)
    key, value = cache.update(1, tokens(1, 7), tokens(1, 17))
    assert key[0, 0, :, 0].tolist() == [1, 1, 7]
    assert value[0, 0, :, 0].tolist() == [11, 11, 17]


def test_what_does_not_fit_is_refused():
    cache = KVCache(1, 2, 1, 4, max_length=5)
    cache.update(0, tokens(5, 0), tokens(5, 0))
    cache.advance(5)
    with pytest.raises(UserError, match="holds 5 tokens; 6"):
        cache.update(0, tokens(1, 0), tokens(1, 0))


def test_crop_and_gather():
    cache = KVCache(1, 2, 1, 4, max_length=5)
    cache.update(0, tokens(3, 1) * torch.tensor([1.0, 2.0]).view(2, 1, 1, 1), tokens(3, 1))
    cache.advance(3)
    cache.crop(1)
    cache.gather(torch.tensor([1]))
    key, _ = cache.update(0, tokens(1, 9)[:1], tokens(1, 9)[:1])
    assert key[:, 0, :, 0].tolist() == [[2, 9]]


def test_memory_is_that_of_its_buffers():
    assert KVCache(3, 2, 4, 8, max_length=16, dtype=torch.bfloat16).num_bytes == 3 * 2 * 2 * 4 * 16 * 8 * 2


def test_a_row_may_be_gathered_several_times():
    cache = KVCache(1, 2, 1, 4, max_length=5)
    cache.update(0, tokens(2, 1) * torch.tensor([1.0, 2.0]).view(2, 1, 1, 1), tokens(2, 1))
    cache.advance(2)
    cache.gather(torch.tensor([1, 0, 1]))
    assert cache.buffers[0][0, :, 0, 0, 0].tolist() == [2.0, 1.0, 2.0] and cache.length == 2


def test_what_a_reset_cache_fits():
    cache, cpu = KVCache(1, 2, 1, 4, max_length=5), torch.device("cpu")
    cache.advance(3)
    cache.reset()
    assert cache.length == 0
    assert cache.fits(2, 5, torch.float32, cpu) and cache.fits(2, 3, torch.float32, cpu)
    assert not cache.fits(2, 6, torch.float32, cpu) and not cache.fits(1, 5, torch.float32, cpu)
    assert not cache.fits(2, 5, torch.bfloat16, cpu)
