"""Virtual tokens against the same network reading real ones: a prompt of their embeddings, a prefix of their keys."""

import pytest
import torch

import nbllm as nb
from nbllm.core.errors import UserError
from nbllm.core.seeding import generator
from nbllm.models.network import build
from nbllm.models.peft.stack import AdapterStack
from nbllm.models.presets import make_config
from nbllm.nn.positions import RopeScaling

TINY = {"vocab_size": 61, "hidden_size": 16, "num_layers": 2, "num_heads": 4, "intermediate_size": 24}
DYNAMIC = RopeScaling(kind="dynamic", factor=2.0, original_max_positions=4)
SHAPES = {
    "rotary": ("llama", {"num_kv_heads": 2}),
    "learned": ("gpt2", {}),
    "alibi": ("bloom", {"intermediate_size": 64}),
    "window": ("mistral", {"num_kv_heads": 2, "sliding_window": 4}),
    "scaled": ("gemma2", {"num_kv_heads": 2, "sliding_window": 4}),
    "prefix": ("llama", {"network": "prefix_decoder"}),
    "recurrent": ("rwkv", {"num_heads": 1, "intermediate_size": 32}),
    "dynamic": ("llama", {"max_positions": 8, "rope_scaling": DYNAMIC}),
}
VIRTUAL = [17, 23]
TEXT = torch.tensor([[3, 7, 5, 9, 11, 4], [8, 2, 6, 1, 12, 13]])
BOTH = torch.cat((torch.tensor([VIRTUAL, VIRTUAL]), TEXT), dim=1)


def make(shape: str):
    family, settings = SHAPES[shape]
    return build(make_config(family, **{**TINY, **settings}), seed=1).eval()


@torch.no_grad()
def adapted(shape: str, kind: str):
    """Return a network with two virtual tokens that are what it makes of real ones."""
    model = make(shape)
    config = model.config
    if kind == "prompt":
        rows = model.embed_tokens(torch.tensor([VIRTUAL]))[0]
        method = nb.PromptTuning(num_virtual_tokens=2)
    else:
        cache = model.make_cache(1, 2)
        model.hidden(torch.tensor([VIRTUAL]), cache=cache)
        held = torch.stack([buffer[:, 0, :, :2] for buffer in cache.buffers])  # layer 2 head token head_dim
        rows = held.permute(3, 0, 1, 2, 4).flatten(1)
        method = nb.PTuningV2(num_virtual_tokens=2)
        assert rows.shape[1] == 2 * config.num_layers * config.num_kv_heads * config.head_dim
    adapter = AdapterStack(model).attach(method)
    adapter.parts[""].embedding.copy_(rows)
    return model


CASES = [
    (shape, kind)
    for shape in SHAPES
    for kind in ("prompt", "prefix")
    if kind == "prompt" or shape not in ("recurrent", "dynamic")
]


@pytest.mark.parametrize(("shape", "kind"), CASES)
class TestDecoders:
    @torch.no_grad()
    def test_they_are_read_as_real_tokens_are(self, shape, kind):
        expected = make(shape)(BOTH)[:, 2:]
        model = adapted(shape, kind)
        torch.testing.assert_close(model(TEXT), expected, atol=1e-5, rtol=1e-5)
        assert model.num_virtual_tokens == 2 and model.context_length == model.config.max_positions - 2

    @torch.no_grad()
    def test_padding_takes_no_position_on_either_side(self, shape, kind):
        """peft#1093, #2821: P P x y with two virtual tokens is computed as x y is."""
        model = adapted(shape, kind)
        expected = model(TEXT[:, :4])
        for left in (2, 0):
            ids = torch.zeros_like(TEXT)
            ids[:, left : left + 4] = TEXT[:, :4]
            mask = torch.zeros_like(TEXT)
            mask[:, left : left + 4] = 1
            found = model(ids, attention_mask=mask)[:, left : left + 4]
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)

    @torch.no_grad()
    def test_with_a_cache_it_is_the_same(self, shape, kind):
        model = adapted(shape, kind)
        expected = model(TEXT)
        cache = model.make_cache(2, 6)
        for _ in range(2):  # a cache that is reset is begun with them again
            cache.reset()
            pieces = [model(TEXT[:, at:end], cache=cache) for at, end in ((0, 3), (3, 4), (4, 6))]
            torch.testing.assert_close(torch.cat(pieces, dim=1), expected, atol=1e-5, rtol=1e-5)
            assert cache.length == 6
        if cache.can_crop:
            cache.crop(3)
            torch.testing.assert_close(model(TEXT[:, 3:], cache=cache), expected[:, 3:], atol=1e-5, rtol=1e-5)
        cache.gather(torch.tensor([1, 0]))
        with (
            pytest.raises(UserError, match="cache holds")
            if shape != "recurrent"
            else pytest.raises(AssertionError)
        ):
            model(TEXT, cache=cache)
            raise AssertionError  # a recurrent state has no limit

    @torch.no_grad()
    def test_padding_and_a_cache_together(self, shape, kind):
        model = adapted(shape, kind)
        expected = model(TEXT[:1, :4])
        ids = torch.tensor([[0, 0, *TEXT[0, :4].tolist()]])
        cache = model.make_cache(1, 6)
        own = torch.arange(6)[None] - 2
        given = {"attention_mask": own >= 0, "positions": own.clamp(min=0)}
        first = model(
            ids[:, :5], cache=cache, attention_mask=own[:, :5] >= 0, positions=given["positions"][:, :5]
        )
        last = model(ids[:, 5:], cache=cache, attention_mask=own >= 0, positions=given["positions"][:, 5:])
        torch.testing.assert_close(torch.cat((first[:, 2:], last), dim=1), expected, atol=1e-5, rtol=1e-5)

    @torch.no_grad()
    def test_packed_texts_see_them_and_not_each_other(self, shape, kind):
        model = adapted(shape, kind)
        if not model.takes_mask:
            return
        documents = torch.tensor([[0, 0, 0, 0, 1, 1, 1, 1]])
        ids = torch.cat((TEXT[:1, :4], TEXT[1:, :4]), dim=1)
        causal = torch.ones(8, 8, dtype=torch.bool).tril()
        visible = (documents[:, :, None] == documents[:, None, :])[:, None] & causal
        given = {"visible": visible, "positions": torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3]])}
        if shape == "prefix" and kind == "prompt":
            with pytest.raises(UserError, match="would see all"):
                model.hidden(ids, **given)
            return
        found = model.logits(model.hidden(ids, **given))[0].unflatten(0, (2, 4))
        torch.testing.assert_close(found, model(TEXT[:, :4]), atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["prompt", "prefix"])
def test_a_prefix_decoder_reads_them_as_part_of_its_prompt(kind):
    plain, model = make("prefix"), adapted("prefix", kind)
    three = torch.tensor([3, 3])
    if kind == "prompt":  # of a prefix's keys nothing can see what comes after them
        expected = plain.hidden(BOTH, prefix_lengths=three + 2)[:, 2:]
        torch.testing.assert_close(model.hidden(TEXT, prefix_lengths=three), expected, atol=1e-5, rtol=1e-5)
    after = model.hidden(TEXT[:, :3], torch.cat((TEXT[:, :1], TEXT[:, 3:]), dim=1))
    same = model.hidden(TEXT, prefix_lengths=three)[:, 2:]
    torch.testing.assert_close(after, same, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_an_encoder_reads_a_prompt_as_tokens():
    family = make_config("bert", **TINY)
    plain = build(family, seed=1).eval()
    model = build(family, seed=1).eval()
    adapter = AdapterStack(model).attach(nb.PromptTuning(num_virtual_tokens=2))
    adapter.parts[""].embedding.copy_(plain.embedding.weight[VIRTUAL])
    torch.testing.assert_close(model(TEXT), plain(BOTH)[:, 2:], atol=1e-5, rtol=1e-5)
    padded = torch.cat((torch.zeros_like(TEXT[:, :2]), TEXT), dim=1)
    mask = torch.tensor([[0, 0, 1, 1, 1, 1, 1, 1]]).expand(2, -1)
    torch.testing.assert_close(model(padded, attention_mask=mask)[:, 2:], model(TEXT), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_an_encoder_sees_a_prefix_whatever_the_padding():
    model = build(make_config("bert", **TINY), seed=1).eval()
    AdapterStack(model).attach(nb.PTuningV2(num_virtual_tokens=2))
    padded = torch.cat((torch.zeros_like(TEXT[:, :2]), TEXT), dim=1)
    mask = torch.tensor([[0, 0, 1, 1, 1, 1, 1, 1]]).expand(2, -1)
    torch.testing.assert_close(model(padded, attention_mask=mask)[:, 2:], model(TEXT), atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize(
    "method", [nb.PromptTuning(num_virtual_tokens=2), nb.PTuningV2(num_virtual_tokens=2)]
)
def test_an_encoder_decoder_with_a_cache_and_padding(method):
    config = make_config("t5", **TINY, num_decoder_layers=2)
    plain, model = build(config, seed=1).eval(), build(config, seed=1).eval()
    adapter = AdapterStack(model).attach(method, seed=2)
    expected = model(TEXT, TEXT[:, :4])
    if isinstance(method, nb.PromptTuning):
        adapter.parts[""].embedding.copy_(plain.embedding.weight[VIRTUAL])
        expected = plain(BOTH, TEXT[:, :4])
    torch.testing.assert_close(model(TEXT, TEXT[:, :4]), expected, atol=1e-5, rtol=1e-5)
    padded = torch.cat((TEXT, torch.zeros_like(TEXT[:, :2])), dim=1)
    mask = torch.tensor([[1, 1, 1, 1, 1, 1, 0, 0]]).expand(2, -1)
    cache = model.make_cache(2, 4)
    first = model(padded, TEXT[:, :2], attention_mask=mask, cache=cache)
    pieces = [first, *(model(None, TEXT[:, at : at + 1], cache=cache) for at in (2, 3))]
    torch.testing.assert_close(torch.cat(pieces, dim=1), expected, atol=1e-5, rtol=1e-5)
    decoded = torch.cat((torch.zeros_like(TEXT[:, :1]), TEXT[:, :4]), dim=1)
    real = torch.tensor([[0, 1, 1, 1, 1]]).expand(2, -1)
    found = model(TEXT, decoded, decoder_attention_mask=real)[:, 1:]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_a_prefix_begins_as_the_keys_of_tokens():
    """Drawn with the seed, also beside other virtual tokens."""
    model = make("rotary")
    stack = AdapterStack(model)
    stack.attach(nb.PromptTuning(num_virtual_tokens=3), name="prompt")
    adapter = stack.attach(nb.PTuningV2(num_virtual_tokens=2), name="prefix", seed=7)
    stack.switch("prefix")
    ids = torch.randint(61, (1, 2), generator=generator(7, "p_tuning_v2", ""))
    expected = make("rotary")(torch.cat((ids.expand(2, -1), TEXT), dim=1))[:, 2:]
    torch.testing.assert_close(model(TEXT), expected, atol=1e-5, rtol=1e-5)
    assert adapter.state == "on"


def test_too_many_leave_no_positions():
    model = build(make_config("gpt2", **TINY, max_positions=8), seed=1)
    with pytest.raises(UserError, match="leave nothing of the 8 positions"):
        AdapterStack(model).attach(nb.PrefixTuning(num_virtual_tokens=8))
    stack = AdapterStack(model)
    stack.attach(nb.PromptTuning(num_virtual_tokens=3), name="first")
    stack.attach(nb.PTuningV2(num_virtual_tokens=2), name="second")
    assert model.num_virtual_tokens == 5 and model.context_length == 3
    assert model(TEXT[:, :3]).shape == (2, 3, 61)
    with pytest.raises(UserError, match="9 tokens were given"):
        model(TEXT[:, :4])
