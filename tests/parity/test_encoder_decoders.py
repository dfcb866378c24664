"""Our encoder-decoders against transformers': logits and gradients from the same weights, files both ways."""

import copy
import json

import pytest
import torch
import torch.nn.functional as F
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSeq2SeqLM

from nbllm.core.errors import UserError, WeightsError
from nbllm.models.encoder_decoder import EncoderDecoder
from nbllm.models.families import FAMILIES
from nbllm.models.loading import load_model, save_model
from nbllm.nn.positions import Places
from nbllm.nn.positions.relative_buckets import buckets
from tests.parity.weights import draw_weights

T5 = dict(vocab_size=131, d_model=48, d_kv=10, d_ff=80, num_layers=2, num_decoder_layers=3, num_heads=4)
BART = dict(
    vocab_size=131, d_model=48, encoder_layers=3, decoder_layers=2, encoder_attention_heads=4,
    decoder_attention_heads=4, encoder_ffn_dim=80, decoder_ffn_dim=80, max_position_embeddings=40,
)  # fmt: skip
# The names begin with the family's.
TINY = {
    "t5": T5,
    "t5-1.1": {**T5, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
    "t5-silu": {**T5, "feed_forward_proj": "gated-silu", "layer_norm_epsilon": 1e-3},
    "t5-exact": {
        **T5,
        "feed_forward_proj": "gated-gelu",
        "dense_act_fn": "gelu",
    },  # as version 4 wrote some FLAN-T5s
    "bart": BART,
    "bart-scaled": {**BART, "scale_embedding": True, "activation_function": "relu"},
}


def make_reference(name, **changes):
    """A model without dropout and with weights large enough that every part matters; v1.1 has a head of its own."""
    off = {"dropout_rate": 0.0} if name.startswith("t5") else {"dropout": 0.0}
    kind = {"t5": "T5", "bart": "Bart"}[name.split("-")[0]]
    config = getattr(transformers, f"{kind}Config")(**{**TINY[name], **off, **changes})
    model = getattr(transformers, f"{kind}ForConditionalGeneration")(config)
    if name == "t5-1.1":
        model.lm_head.weight = torch.nn.Parameter(torch.empty(131, 48))
    return draw_weights(model)


@pytest.fixture(scope="module", params=sorted(TINY))
def tiny(request):
    return make_reference(request.param)


@pytest.fixture(scope="module")
def saved(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    tiny.save_pretrained(folder)
    return folder


def ids(*shape, seed=1):
    """Tokens, none of which is padding."""
    return torch.randint(3, 131, shape, generator=torch.Generator().manual_seed(seed))


def padded(side, lengths=(13, 7, 1)):
    """Texts of odd lengths, as a batch with padding on one side, and which tokens are real."""
    tokens, mask = ids(3, 13), torch.ones(3, 13, dtype=torch.long)
    for row, length in enumerate(lengths):
        mask[row, slice(length, None) if side == "right" else slice(None, -length)] = 0
    return tokens.masked_fill(mask == 0, 0), mask


def compare_gradients(tiny, ours, theirs, mine, targets):
    """Every gradient of the loss, to 1e-4 of its norm."""
    found = []
    for model, logits in ((tiny, theirs), (ours, mine)):
        model.zero_grad(set_to_none=True)
        F.cross_entropy(logits.flatten(0, 1), targets.flatten()).backward()
        found.append({name: p.grad for name, p in model.named_parameters()})
    rules = FAMILIES[ours.config.family].rules(ours.config)
    assert {rule.source for rule in rules} == set(found[0])
    assert {target for rule in rules for target in rule.targets} == set(found[1])
    for rule in rules:
        theirs, mine = found[0][rule.source], found[1][rule.targets[0]]
        # A key's bias shifts all scores of a query alike: its gradient is zero but for rounding.
        assert float((mine - theirs).norm()) < 1e-4 * max(float(theirs.norm()), 1e-5), rule.source


@pytest.mark.parametrize("source, target", [(1, 5), (23, 1), (33, 19)])
def test_logits_and_gradients(tiny, saved, source, target):
    ours, tokens, written = load_model(saved), ids(2, source), ids(2, target, seed=2)
    assert type(ours) is EncoderDecoder
    assert ours.num_parameters == sum(parameter.numel() for parameter in tiny.parameters())
    theirs = tiny(input_ids=tokens, decoder_input_ids=written, output_hidden_states=True)
    mine = ours(tokens, written)
    torch.testing.assert_close(mine, theirs.logits, atol=1e-5, rtol=0)
    torch.testing.assert_close(ours.encode(tokens), theirs.encoder_last_hidden_state, atol=1e-5, rtol=0)
    torch.testing.assert_close(ours.logits(ours.hidden(tokens, written)), mine)
    if min(source, target) > 1:  # a single token can only attend to itself: queries and keys have no gradient
        compare_gradients(tiny, ours, theirs.logits, mine, written.flip(1))


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding(tiny, saved, side):
    """Of the text that is read, on both sides as each text alone; transformers' BART counts padding on the left."""
    ours, (tokens, mask), written = load_model(saved), padded(side), ids(3, 11, seed=2)
    mine = ours(tokens, written, attention_mask=mask)
    alone = [
        tiny(
            input_ids=tokens[row : row + 1, mask[row].bool()], decoder_input_ids=written[row : row + 1]
        ).logits[0]
        for row in range(3)
    ]
    torch.testing.assert_close(mine, torch.stack(alone), atol=1e-5, rtol=0)
    if side == "right" or tiny.config.model_type == "t5":
        theirs = tiny(input_ids=tokens, attention_mask=mask, decoder_input_ids=written).logits
        compare_gradients(tiny, ours, theirs, mine, written.flip(1))


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_of_what_is_written(tiny, saved, side):
    ours, (written, mask), tokens = load_model(saved), padded(side), ids(3, 9, seed=2)
    mine = ours(tokens, written, decoder_attention_mask=mask)
    assert torch.isfinite(mine).all()
    for row in range(3):
        real = mask[row].bool()
        alone = tiny(input_ids=tokens[row : row + 1], decoder_input_ids=written[row : row + 1, real]).logits[
            0
        ]
        torch.testing.assert_close(mine[row, real], alone, atol=1e-5, rtol=0)


def test_with_a_cache_in_parts(tiny, saved):
    """The text is read once, with padding; then rows are reordered, as beams are, and the cache is used again."""
    ours, (tokens, mask), written = load_model(saved), padded("right"), ids(3, 19, seed=2)
    whole = ours(tokens, written, attention_mask=mask)
    cache = ours.make_cache(3, 19)
    calls = []
    ours.encoder.register_forward_hook(lambda *arguments: calls.append(1))
    with torch.inference_mode():
        parts = [
            ours(tokens, part, attention_mask=mask, cache=cache) for part in written.split([7, 1, 1, 8, 2], 1)
        ]
        torch.testing.assert_close(torch.cat(parts, dim=1), whole, atol=1e-5, rtol=0)
        assert len(calls) == 1 and cache.length == 19
        cache.crop(7)
        rows = torch.tensor([2, 0, 0])
        cache.gather(rows)
        again = ours(tokens[rows], written[rows, 7:12], cache=cache)
        torch.testing.assert_close(again, whole[rows, 7:12], atol=1e-5, rtol=0)
        assert len(calls) == 1
        cache.reset()
        other = ours(tokens.flip(1), written[:, :3], cache=cache)
        torch.testing.assert_close(other, ours(tokens.flip(1), written[:, :3]), atol=1e-5, rtol=0)
    assert cache.num_bytes > 0


@pytest.mark.parametrize("max_shard_bytes", [10**9, 60_000])
def test_transformers_opens_what_we_save(tiny, saved, max_shard_bytes, tmp_path):
    ours = load_model(saved)
    save_model(
        ours, tmp_path, token_ids={"pad_token_id": tiny.config.pad_token_id}, max_shard_bytes=max_shard_bytes
    )
    assert (tmp_path / "model.safetensors").exists() == (max_shard_bytes == 10**9)
    reopened, report = AutoModelForSeq2SeqLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values()), report
    assert type(reopened) is type(tiny)
    for (name, got), (_, expected) in zip(
        reopened.state_dict().items(), tiny.state_dict().items(), strict=True
    ):
        assert torch.equal(got, expected), name
    arguments = {"input_ids": ids(2, 13), "decoder_input_ids": ids(2, 7, seed=2)}
    assert torch.equal(reopened(**arguments).logits, tiny(**arguments).logits)
    assert load_model(tmp_path).config == ours.config


def test_sharded_files_of_transformers_open(tiny, tmp_path):
    tiny.save_pretrained(tmp_path, max_shard_size="60KB")
    assert not (tmp_path / "model.safetensors").exists()
    tokens, written = ids(2, 13), ids(2, 7, seed=2)
    theirs = tiny(input_ids=tokens, decoder_input_ids=written).logits
    torch.testing.assert_close(load_model(tmp_path)(tokens, written), theirs, atol=1e-5, rtol=0)


def test_bfloat16_is_kept_and_near(tiny, tmp_path):
    half = copy.deepcopy(tiny).bfloat16()
    half.save_pretrained(tmp_path)
    ours = load_model(tmp_path)
    assert ours.dtype == torch.bfloat16
    tokens, written = ids(2, 23), ids(2, 11, seed=2)
    exact = load_model(tmp_path, dtype=torch.float32)(tokens, written)
    our_error = (ours(tokens, written).float() - exact).norm() / exact.norm()
    theirs = half(input_ids=tokens, decoder_input_ids=written).logits
    their_error = (theirs.float() - exact).norm() / exact.norm()
    assert our_error < 1.5 * their_error


def test_the_head_of_t5_is_scaled_where_it_is_the_embedding(tmp_path):
    """v1.0: h E^T / sqrt(d); v1.1, with a head of its own in the file: unscaled, whatever transformers 5 calls it."""
    for name in ("t5", "t5-1.1"):
        tiny = make_reference(name)
        tiny.save_pretrained(tmp_path / name)
        ours = load_model(tmp_path / name)
        is_first = name == "t5"
        assert ours.config.tie_embeddings == ours.config.scale_head == is_first
        assert torch.equal(ours.embedding.weight, ours.head_weight) == is_first
        tokens, written = ids(1, 5), ids(1, 4, seed=2)
        states = tiny(
            input_ids=tokens, decoder_input_ids=written, output_hidden_states=True
        ).decoder_hidden_states
        head = (tiny.shared if is_first else tiny.lm_head).weight
        expected = states[-1] @ head.T / (48**0.5 if is_first else 1)
        torch.testing.assert_close(ours(tokens, written), expected, atol=1e-5, rtol=0)


def test_a_new_t5_of_the_second_kind_has_its_embedding_as_head_in_transformers_5(tmp_path):
    config = transformers.T5Config(**{**TINY["t5-1.1"], "dropout_rate": 0.0})
    tiny = transformers.T5ForConditionalGeneration(config).eval()
    tiny.save_pretrained(tmp_path / "theirs")
    ours = load_model(tmp_path / "theirs")
    assert ours.config.tie_embeddings and not ours.config.scale_head
    arguments = {"input_ids": ids(1, 5), "decoder_input_ids": ids(1, 4, seed=2)}
    expected = tiny(**arguments).logits.detach()
    size = float(expected.abs().max())
    torch.testing.assert_close(ours(*arguments.values()), expected, atol=1e-5 * size, rtol=0)
    (tmp_path / "ours").mkdir()
    save_model(ours, tmp_path / "ours")
    reopened = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "ours")
    assert torch.equal(reopened(**arguments).logits, expected)


def test_the_published_configuration_of_flan_t5(tmp_path):
    """As version 4 of transformers wrote it: tie_word_embeddings alone tells both versions apart."""
    make_reference("t5-1.1").save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    values = {
        **json.loads(file.read_text()), "tie_word_embeddings": False, "n_positions": 512, "output_past": True,
        "decoder_start_token_id": 0, "task_specific_params": {"summarization": {"num_beams": 4}},
    }  # fmt: skip
    for name in ("scale_decoder_outputs", "is_gated_act", "dense_act_fn"):
        del values[name]
    file.write_text(json.dumps(values))
    config = load_model(tmp_path).config
    assert not config.tie_embeddings and not config.scale_head and config.max_positions == 512
    values["tie_word_embeddings"] = True
    file.write_text(json.dumps(values))
    with pytest.raises(WeightsError, match="lm_head.weight differs from the embedding"):
        load_model(tmp_path)


def test_buckets_of_t5():
    distances = torch.tensor([-200, -128, -64, -16, -8, -1, 0, 1, 7, 8, 16, 64, 128])
    both = [15, 15, 14, 10, 8, 1, 0, 17, 23, 24, 26, 30, 31]
    before = [31, 31, 26, 16, 8, 1, 0, 0, 0, 0, 0, 0, 0]
    assert buckets(distances, causal=False).tolist() == both
    assert buckets(distances, causal=True).tolist() == before


def test_each_stack_of_t5_has_its_table_and_cross_attention_has_none(tmp_path):
    tiny = make_reference("t5")
    tiny.save_pretrained(tmp_path)
    ours = load_model(tmp_path)
    near = Places(slice(0, 300), 300)
    for stack, theirs, causal in ((ours.encoder, tiny.encoder, False), (ours.decoder, tiny.decoder, True)):
        attention = theirs.block[0].layer[0].SelfAttention
        table = attention.relative_attention_bias.weight
        assert torch.equal(stack.positions.weight, table) and stack.positions.causal == causal
        torch.testing.assert_close(stack.positions.bias(near, near), attention.compute_bias(300, 300))
    names = [name for name, _ in ours.named_parameters()]
    assert sum("positions" in name for name in names) == 2


def test_rows_of_barts_positions_and_a_token_too_many(tmp_path):
    make_reference("bart").save_pretrained(tmp_path)
    ours = load_model(tmp_path)
    assert (ours.config.max_positions, ours.config.position_offset) == (40, 2)
    assert len(ours.encoder.positions.weight) == 42
    assert ours(ids(1, 40), ids(1, 40)).shape == (1, 40, 131)
    for lengths in ((41, 3), (3, 41)):
        with pytest.raises(UserError, match="41 tokens were given; this model has 40 positions"):
            ours(*(ids(1, length) for length in lengths))


def test_the_bias_of_barts_logits(tmp_path):
    """Zero in all that is published, and then no parameter of ours; else it counts, and is saved."""
    tiny = make_reference("bart")
    arguments = {"input_ids": ids(1, 5), "decoder_input_ids": ids(1, 4, seed=2)}
    plain = tiny(**arguments).logits
    tiny.final_logits_bias += torch.randn(1, 131, generator=torch.Generator().manual_seed(0))
    tiny.save_pretrained(tmp_path / "theirs")
    ours = load_model(tmp_path / "theirs")
    assert ours.config.head_bias
    expected = tiny(**arguments).logits
    torch.testing.assert_close(ours(*arguments.values()), expected, atol=1e-5, rtol=0)
    assert not torch.allclose(plain, expected, atol=0.1)
    (tmp_path / "ours").mkdir()
    save_model(ours, tmp_path / "ours")
    assert torch.equal(AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "ours")(**arguments).logits, expected)


def test_files_with_copies_of_the_embedding(tmp_path):
    """Old files hold the embedding once for each place where it is read."""
    tiny = make_reference("bart")
    tiny.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    for name in ("model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight", "lm_head.weight"):
        tensors[name] = tensors["model.shared.weight"].clone()
    save_file(tensors, tmp_path / "model.safetensors")
    tokens, written = ids(1, 5), ids(1, 4, seed=2)
    theirs = tiny(input_ids=tokens, decoder_input_ids=written).logits
    torch.testing.assert_close(load_model(tmp_path)(tokens, written), theirs, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "name, setting, value",
    [
        ("t5", "relative_attention_num_buckets", 16),
        ("t5", "relative_attention_max_distance", 64),
        ("t5", "feed_forward_proj", "gated-mish"),
        ("t5", "dense_act_fn", "mish"),
        ("t5", "is_encoder_decoder", False),
        ("t5", "is_decoder_only", True),
        ("bart", "normalize_before", True),
        ("bart", "add_final_layer_norm", True),
        ("bart", "normalize_embedding", False),
        ("bart", "static_position_embeddings", True),
        ("bart", "decoder_attention_heads", 2),
        ("bart", "decoder_ffn_dim", 96),
        ("bart", "activation_function", "mish"),
        ("bart", "is_encoder_decoder", False),
        ("bart", "something_new", 3),
    ],
)
def test_a_setting_that_is_not_honoured_is_refused_by_name(name, setting, value, tmp_path):
    make_reference(name).save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), setting: value}))
    with pytest.raises(WeightsError, match=setting):
        load_model(tmp_path)


def test_every_family_of_encoder_decoders_is_held():
    known = {name for name in FAMILIES if FAMILIES[name].fixed.get("network") == "encoder_decoder"}
    assert {name.split("-")[0] for name in TINY} == known
