"""Attention weights computed again, against transformers' own."""

import threading

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AlbertConfig,
    AlbertForMaskedLM,
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForMaskedLM,
    T5Config,
    T5ForConditionalGeneration,
)

from nbllm.core.errors import UserError
from nbllm.interpret import attention_weights
from nbllm.lm import LM
from nbllm.models.config import ModelConfig
from nbllm.models.decoder import Decoder
from nbllm.models.loading import load_model
from nbllm.models.network import build
from nbllm.models.peft.prefix_tuning import PTuningV2
from nbllm.models.peft.stack import AdapterStack
from nbllm.models.presets import make_config
from nbllm.nn.attention import Attention

IDS = torch.randint(131, (23,), generator=torch.Generator().manual_seed(1))


def gpt2():
    config = GPT2Config(vocab_size=131, n_embd=48, n_layer=3, n_head=4, n_positions=64, bos_token_id=0)
    return GPT2LMHeadModel(config)


def grouped_llama():
    config = LlamaConfig(
        vocab_size=131, hidden_size=48, intermediate_size=80, num_hidden_layers=3, num_attention_heads=6,
        num_key_value_heads=2, rope_theta=5e5, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    return LlamaForCausalLM(config)


ENCODER = {"vocab_size": 131, "hidden_size": 48, "intermediate_size": 80, "num_attention_heads": 4}


def bert():
    return BertForMaskedLM(BertConfig(**ENCODER, num_hidden_layers=3, max_position_embeddings=64))


def albert():
    """Whose three layers share one block."""
    return AlbertForMaskedLM(
        AlbertConfig(**ENCODER, num_hidden_layers=3, embedding_size=16, max_position_embeddings=64)
    )


def roberta():
    return RobertaForMaskedLM(RobertaConfig(**ENCODER, num_hidden_layers=3, max_position_embeddings=66))


@pytest.fixture(scope="module", params=[gpt2, grouped_llama, bert, albert, roberta])
def pair(request, tmp_path_factory):
    """A transformers model with opinions strong enough that its weights are not all alike, and the same as ours."""
    theirs = request.param().eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in theirs.parameters():
            weight.normal_(1.0 if weight.dim() == 1 else 0.0, 0.3, generator=generator)
    folder = tmp_path_factory.mktemp("model")
    theirs.save_pretrained(folder)
    theirs.set_attn_implementation("eager")
    return theirs, load_model(folder)


def tiny(**changes):
    shape = dict(family="gpt2", vocab_size=131, hidden_size=32, num_layers=3, num_heads=4, max_positions=64)
    return Decoder(ModelConfig(**{**shape, **changes}), seed=1)


@pytest.mark.parametrize("backend", ["auto", "eager", "blocked"])
def test_they_are_those_of_transformers(pair, backend):
    theirs, ours = pair
    with torch.no_grad():
        expected = torch.cat(theirs(IDS[None], output_attentions=True).attentions)
    assert expected.std() > 0.05  # else anything would agree
    ours.attention_backend = backend
    got = attention_weights(ours, IDS)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(got.sum(-1), torch.ones(got.shape[:3]))
    is_causal = isinstance(ours, Decoder)
    assert got.triu(1).any() != is_causal


def t5():
    return T5ForConditionalGeneration(
        T5Config(
            vocab_size=131, d_model=48, d_kv=16, d_ff=80, num_layers=3, num_decoder_layers=2, num_heads=4
        )
    )


def bart():
    return BartForConditionalGeneration(
        BartConfig(
            vocab_size=131, d_model=48, encoder_layers=3, decoder_layers=2, encoder_attention_heads=4,
            decoder_attention_heads=4, encoder_ffn_dim=80, decoder_ffn_dim=80, max_position_embeddings=64,
        )
    )  # fmt: skip


@pytest.mark.parametrize(("make", "std"), [(t5, 0.15), (bart, 0.35)])  # T5 divides its scores by nothing
def test_an_encoder_decoders_three_attentions_are_those_of_transformers(make, std, tmp_path):
    theirs, written = make().eval(), IDS[:7]
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in theirs.named_parameters():
            weight.normal_(float("norm" in name and name.endswith("weight")), std, generator=generator)
    theirs.save_pretrained(tmp_path)
    theirs.set_attn_implementation("eager")
    ours = load_model(tmp_path)
    with torch.no_grad():
        expected = theirs(IDS[None], decoder_input_ids=written[None], output_attentions=True)
    for part in ("encoder", "decoder", "cross"):
        given = {} if part == "encoder" else {"decoder_text": written}
        got = attention_weights(ours, IDS, part=part, **given)
        wanted = torch.cat(getattr(expected, f"{part}_attentions"))
        assert wanted.std() > 0.01
        torch.testing.assert_close(got, wanted, atol=1e-5, rtol=0)
    assert torch.equal(attention_weights(ours, IDS, decoder_text=written), got)  # which is the usual one
    assert attention_weights(ours, IDS).shape == (3, 4, 23, 23)
    one = attention_weights(ours, IDS, decoder_text=written, layers=1, heads=[2, 0])
    assert torch.equal(one, got[[1]][:, [2, 0]])
    with pytest.raises(UserError, match=r"no layer 2"):
        attention_weights(ours, IDS, decoder_text=written, layers=2)
    with pytest.raises(UserError, match=r"(?s)cross attention is of what the decoder writes.*decoder_text"):
        attention_weights(ours, IDS, part="cross")
    with pytest.raises(UserError, match="There is no part 'both'"):
        attention_weights(ours, IDS, part="both")


def test_only_what_is_asked_is_kept_and_computed(pair, monkeypatch):
    _, ours = pair
    everything = attention_weights(ours, IDS)
    projected = []
    project = Attention.project

    def watched(self, *arguments):
        projected.append(self.layer)
        return project(self, *arguments)

    monkeypatch.setattr(Attention, "project", watched)
    got = attention_weights(ours, IDS.tolist(), layers=[2, 0], heads=3)
    assert torch.equal(got, everything[[2, 0]][:, [3]])
    assert len(projected) == 5  # once by the forward pass, once more for an asked layer


def test_the_model_is_left_as_it_was(pair):
    _, ours = pair
    before = ours(IDS[None])
    attention_weights(ours, IDS)
    with pytest.raises(UserError):
        attention_weights(ours, IDS, layers=7)
    assert not any(block.attention._forward_pre_hooks for block in ours.blocks)
    after = ours(IDS[None])
    assert torch.equal(before, after)
    after.sum().backward()  # nothing of the inference mode stays behind


def test_another_thread_that_uses_the_model_meanwhile_is_not_taken_for_us(monkeypatch):
    model, other = tiny(), torch.zeros(1, 5, dtype=torch.long)
    expected = attention_weights(model, IDS)
    hidden = Decoder.hidden

    def disturbed(self, ids, **options):
        out = hidden(self, ids, **options)
        thread = threading.Thread(target=hidden, args=(self, other))
        thread.start()
        thread.join()
        return out

    monkeypatch.setattr(Decoder, "hidden", disturbed)
    assert torch.equal(attention_weights(model, IDS), expected)


def test_half_precision_gives_float32():
    got = attention_weights(tiny().to(torch.bfloat16), IDS)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, attention_weights(tiny(), IDS), atol=0.02, rtol=0)


def test_a_text_is_read_as_generate_reads_it():
    bpe = Tokenizer(models.BPE({sign: i for i, sign in enumerate(pre_tokenizers.ByteLevel.alphabet())}, []))
    bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe)
    lm = LM(tiny(vocab_size=256), tokenizer)
    got = attention_weights(lm, "a cat")
    assert got.shape == (3, 4, 5, 5)
    assert torch.equal(got, attention_weights(lm.model, tokenizer("a cat").input_ids))


@pytest.mark.parametrize(
    ("text", "asked", "reason"),
    [
        ([], {}, "no token"),
        ("text", {}, "reads no text"),
        ([131], {}, "Token 131 is not"),
        ([-1], {}, "Token -1 is not"),
        ([1], {"layers": [0, 3]}, "(?s)no layer 3.*0 to 2"),
        ([1], {"heads": -1}, "no head -1"),
        ([1], {"layers": []}, "No layer is asked"),
        ([1], {"decoder_text": [1]}, "decoder_text is for encoder-decoders"),
        ([1], {"part": "encoder"}, "part is for encoder-decoders"),
        ([1] * 65, {}, "65 tokens were given"),
    ],
)
def test_what_cannot_be_is_refused(text, asked, reason):
    with pytest.raises(UserError, match=reason):
        attention_weights(tiny(), text, **asked)


def test_virtual_tokens_of_an_adapter_cannot_be_shown():
    shape = {"vocab_size": 131, "hidden_size": 16, "num_layers": 1, "num_heads": 2}
    model = build(make_config("llama", **shape), seed=1)
    adapter = AdapterStack(model).attach(PTuningV2(num_virtual_tokens=2))
    with pytest.raises(UserError, match="2 tokens without a text"):
        attention_weights(model, [3, 4])
    with adapter.disabled():
        assert attention_weights(model, [3, 4]).shape == (1, 2, 2, 2)
