"""The prefix decoder: its mask, its one reading of a prompt, its files, and what it refuses."""

import pytest
import torch

import nbllm as nb
from nbllm.core.errors import UserError
from nbllm.inference.runners import compiled
from nbllm.models import Decoder, PrefixDecoder
from nbllm.models.network import build
from nbllm.models.presets import make_config
from nbllm.nn.masks import prefix_mask, restarted_positions, same_document_mask
from nbllm.nn.positions import POSITIONS
from nbllm.nn.positions.scaling import RopeScaling

SHAPE = {"num_layers": 2, "hidden_size": 32, "num_heads": 2, "max_positions": 48, "initializer_range": 0.3}


@pytest.fixture(scope="module")
def tokenizer():
    return nb.data.train_tokenizer(nb.data.load("pydocs").select(range(5)), vocab_size=300)


@pytest.fixture(scope="module", params=["gpt2", "llama", "bloom"])
def lm(request, tokenizer):
    return nb.LM.new(request.param, tokenizer=tokenizer, network="prefix_decoder", seed=1, **SHAPE)


def network(positions):
    config = make_config("gpt2", vocab_size=97, network="prefix_decoder", positions=positions, **SHAPE)
    return build(config, seed=1)


def ids(*shape):
    return torch.randint(97, shape, generator=torch.Generator().manual_seed(0))


def test_masks():
    """The values of a prefix of 2 of 5; and the same with padding, which sees itself and is seen by no one else."""
    expected = [[1, 1, 0, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0], [1, 1, 1, 1, 0], [1, 1, 1, 1, 1]]
    assert prefix_mask(torch.tensor([2, 0]), 5)[0, 0].int().tolist() == expected
    assert torch.equal(prefix_mask(torch.tensor([2, 0]), 5)[1, 0], torch.ones(5, 5).tril().bool())
    padded = prefix_mask(torch.tensor([2]), 7, torch.tensor([[0, 0, 1, 1, 1, 1, 1]]))[0, 0].int()
    assert padded[2:, 2:].tolist() == expected
    assert torch.equal(padded[:, :2], torch.eye(7, 2).int())
    documents = torch.tensor([[3, 3, 5, 5, 5, 6]])
    assert restarted_positions(documents).tolist() == [[0, 1, 0, 1, 2, 0]]
    same = same_document_mask(documents)[0, 0]
    assert same.int().tolist() == [[int(a == b) for a in documents[0]] for b in documents[0]]


@pytest.mark.parametrize("positions", sorted(POSITIONS))
def test_the_prefix_sees_itself_whole_and_the_rest_only_what_is_before(positions):
    model, given, prefix = network(positions), ids(1, 12), torch.tensor([5])
    before = model.hidden(given, prefix_lengths=prefix)[0].detach()
    for place in range(12):
        changed = given.clone()
        changed[0, place] = (changed[0, place] + 1) % 97
        after = model.hidden(changed, prefix_lengths=prefix)[0].detach()
        moved = ~torch.isclose(before, after, atol=1e-6).all(-1)
        assert moved.tolist() == [place < 5 or row >= place for row in range(12)]
    if positions == "none":
        return
    reordered = given[:, torch.tensor([0, 1, 3, 2, *range(4, 12)])]
    last = model.hidden(reordered, prefix_lengths=prefix)[0, 0]
    assert not torch.allclose(last, before[0], atol=1e-4)  # the order of what comes later is told, too


def test_without_a_prefix_it_is_a_causal_decoder():
    config = make_config("gpt2", vocab_size=97, **SHAPE)
    causal, model = build(config, seed=1), network("learned")
    torch.testing.assert_close(model(ids(2, 12)), causal(ids(2, 12)))
    assert type(causal) is Decoder and type(model) is PrefixDecoder


@pytest.mark.parametrize("positions", sorted(POSITIONS))
def test_padding_and_cache_change_nothing(positions):
    model, given = network(positions), ids(2, 14)
    real = torch.ones(2, 14, dtype=torch.long)
    real[1, :3] = 0
    lengths = torch.tensor([6, 4])
    with torch.inference_mode():
        alone = [
            model.hidden(given[row : row + 1, start:], prefix_lengths=lengths[row : row + 1])[0]
            for row, start in ((0, 0), (1, 3))
        ]
        together = model.hidden(given, prefix_lengths=lengths, attention_mask=real)
        cache = model.make_cache(2, 14)
        parts = [
            model.hidden(given[:, :9], prefix_lengths=lengths, attention_mask=real[:, :9], cache=cache),
            model.hidden(given[:, 9:], attention_mask=real, cache=cache),
        ]
    for whole in (together, torch.cat(parts, 1)):
        torch.testing.assert_close(whole[0], alone[0], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(whole[1, 3:], alone[1], atol=1e-5, rtol=1e-4)


def test_it_reads_inputs_and_targets_as_an_encoder_decoder_does():
    """Rows of different lengths, each as it would be alone; the start token is not read."""
    model, first, second = network("rotary"), ids(2, 7), ids(2, 4)
    real, targets = torch.ones(2, 7, dtype=torch.bool), torch.ones(2, 4, dtype=torch.bool)
    real[1, 4:], targets[0, 3:] = 0, 0
    got = model.hidden(first, second, attention_mask=real, decoder_attention_mask=targets)
    for row, (length, count) in enumerate(((7, 3), (4, 4))):
        joined = torch.cat((first[row, :length], second[row, 1:count]))[None]
        alone = model.hidden(joined, prefix_lengths=torch.tensor([length]))[0, length - 1 :]
        torch.testing.assert_close(got[row, :count], alone, atol=1e-5, rtol=1e-4)
    unpadded = model.hidden(first, second)
    joined = torch.cat((first, second[:, 1:]), 1)
    torch.testing.assert_close(unpadded, model.hidden(joined, prefix_lengths=torch.tensor([7, 7]))[:, 6:])


def greedy(lm, prompt, count):
    """Continue a prompt by reading everything anew for each token."""
    given = lm.tokenizer(prompt)["input_ids"]
    tokens = []
    for _ in range(count):
        everything = torch.tensor([given + tokens])
        hidden = lm.model.hidden(everything, prefix_lengths=torch.tensor([len(given)]))
        tokens.append(int(lm.model.logits(hidden[0, -1]).argmax()))
    return tokens


def test_generation_reads_the_prompt_once_and_equals_reading_everything_anew(lm, monkeypatch):
    monkeypatch.setattr(compiled, "MIN_PARAMETERS", 0)  # no compiled kernel takes it, either
    prompts = ["def add(a, b): return", "x", "for each item in the list"]
    settings = {"max_new_tokens": 12, "temperature": 0}
    calls = []
    real = PrefixDecoder.hidden
    monkeypatch.setattr(
        PrefixDecoder,
        "hidden",
        lambda self, ids, **given: calls.append(ids.shape) or real(self, ids, **given),
    )
    together = [each.tokens for each in lm.generate(prompts, **settings)]
    assert sum(count > 1 for _, count in calls) == 1
    monkeypatch.undo()
    for prompt, tokens in zip(prompts, together, strict=True):
        assert lm.generate(prompt, **settings).tokens == tokens
        expected = greedy(lm, prompt, len(tokens))
        assert tokens == expected
    bidirectional = lm.model.hidden(torch.tensor([[5, 6, 7]]), prefix_lengths=torch.tensor([3]))
    assert not torch.allclose(bidirectional[0, 0], lm.model.hidden(torch.tensor([[5, 6, 7]]))[0, 0])


def test_a_window_that_slides_keeps_what_was_generated_causal(lm):
    """More tokens than positions: the context is read anew, its prompt as the prefix, what was generated causally."""
    long = lm.generate("x = 1", max_new_tokens=60, temperature=0, overflow="slide").tokens
    assert len(long) == 60
    given = lm.tokenizer("x = 1")["input_ids"]
    everything, limit, start = given + long, lm.config.max_positions, 0
    for place in range(len(given), len(everything)):
        if place - start > limit:
            start = place - limit // 2
        hidden = lm.model.hidden(
            torch.tensor([everything[start:place]]),
            prefix_lengths=torch.tensor([max(0, len(given) - start)]),
        )
        assert everything[place] == int(lm.model.logits(hidden[0, -1]).argmax())


def test_it_is_saved_in_a_layout_of_its_own_which_transformers_does_not_read_as_causal(lm, tmp_path, capfd):
    from transformers import AutoModelForCausalLM

    folder = lm.save(tmp_path / "model")
    opened = nb.load(folder)
    assert capfd.readouterr().err == ""
    assert opened.config == lm.config and type(opened.model) is PrefixDecoder
    given = torch.arange(9)[None]
    assert torch.equal(opened.model(given), lm.model(given))
    with pytest.raises((ValueError, KeyError), match="nbllm"):
        AutoModelForCausalLM.from_pretrained(folder)
    with pytest.raises(UserError, match="nbllm"):
        lm.save(tmp_path / "model.gguf")


def test_positions_are_scaled_unless_the_prompt_would_be_read_again(tokenizer, tmp_path):
    def make(kind):
        rope = RopeScaling(kind=kind, factor=2.0, original_max_positions=24)
        return nb.LM.new("llama", tokenizer=tokenizer, network="prefix_decoder", rope_scaling=rope, **SHAPE)

    lm = make("yarn")
    assert nb.load(lm.save(tmp_path / "model")).config == lm.config
    with pytest.raises(UserError, match="reads its prompt once"):
        make("dynamic")


def test_what_it_cannot_do_is_refused_with_the_reason(lm):
    for ask in (lambda: lm.score("a"), lambda: lm.embed(["a"]), lambda: lm.fill("a")):
        with pytest.raises(
            UserError, match="it is a prefix decoder, which reads a prompt in both directions"
        ):
            ask()


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_its_masks_are_computed_as_in_transformers(family, tokenizer, tmp_path):
    """Given the same mask and positions, transformers' causal model of the same weights has the same logits."""
    from transformers import AutoModelForCausalLM

    causal, prefix = (
        nb.LM.new(family, tokenizer=tokenizer, seed=1, network=network, **SHAPE)
        for network in ("decoder", "prefix_decoder")
    )
    theirs = AutoModelForCausalLM.from_pretrained(
        causal.save(tmp_path / "model"), attn_implementation="eager"
    )
    given, lengths = (
        torch.randint(300, (2, 13), generator=torch.Generator().manual_seed(0)),
        torch.tensor([5, 9]),
    )
    documents = torch.tensor([[0] * 4 + [1] * 9, [0] * 1 + [1] * 6 + [2] * 6])
    inside = same_document_mask(documents) & torch.ones(13, 13, dtype=torch.bool).tril()
    positions = restarted_positions(documents)
    with torch.inference_mode():
        for ours, mask, places in (
            (prefix.model(given, prefix_lengths=lengths), prefix_mask(lengths, 13), None),
            (
                causal.model.logits(causal.model.hidden(given, visible=inside, positions=positions)),
                inside,
                positions,
            ),
        ):
            added = torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)
            expected = theirs(given, attention_mask=added, position_ids=places).logits
            torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-4)


def test_its_attention_is_shown_as_it_reads_a_prompt(lm):
    from nbllm.interpret import attention_weights

    weights = attention_weights(lm, "def add(a, b): return")
    assert (weights > 0).all() and weights.shape[0] == 2
    torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:-1]))


def test_the_error_says_how_a_model_is_made_that_the_objective_can_train(tokenizer):
    lm = nb.LM.new("gpt2", tokenizer=tokenizer, **SHAPE)
    said = r"objective='blank_infilling'.*\n.*'causal_lm'.*nb.LM.new\(\"gpt2\", network=\"prefix_decoder\", ...\)"
    with pytest.raises(UserError, match=said):
        nb.train(lm, [{"text": "abc " * 200}], objective="blank_infilling", sequence_length=32)
