import torch

from nbllm.nn.masks import causal_mask, padded_causal_mask, padding_mask, sliding_window_mask


def test_the_last_query_sees_every_key():
    assert causal_mask(2, 4).tolist() == [[True, True, True, False], [True] * 4]
    assert causal_mask(3, 3).int().tolist() == [[1, 0, 0], [1, 1, 0], [1, 1, 1]]


def test_padding_is_seen_by_nobody_but_itself():
    mask = padded_causal_mask(torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]]), 4)
    assert mask.shape == (2, 1, 4, 4)
    assert mask[0, 0].int().tolist() == [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 1, 1]]
    assert torch.equal(mask[1, 0], causal_mask(4, 4))


def test_with_a_cache_the_queries_are_the_last_keys():
    real = torch.tensor([[0, 1, 1, 1]], dtype=torch.bool)
    assert padded_causal_mask(real, 2)[0, 0].int().tolist() == [[0, 1, 1, 0], [0, 1, 1, 1]]


def test_padding_is_seen_by_no_token_unless_there_is_nothing_else():
    mask = padding_mask(torch.tensor([[0, 1, 1], [1, 1, 0], [0, 0, 0]]))
    assert mask.shape == (3, 1, 1, 3)
    assert mask[:, 0, 0].int().tolist() == [[0, 1, 1], [1, 1, 0], [1, 1, 1]]


def test_a_window_counts_the_token_itself():
    keys = torch.arange(8)[None]
    visible = sliding_window_mask(keys, keys, 4) & causal_mask(8, 8)
    assert visible.shape == (1, 1, 8, 8)
    assert visible[0, 0].sum(-1).tolist() == [1, 2, 3, 4, 4, 4, 4, 4]
    assert torch.equal(
        (sliding_window_mask(keys[:, 6:], keys, 4) & causal_mask(2, 8))[0, 0], visible[0, 0, 6:]
    )
