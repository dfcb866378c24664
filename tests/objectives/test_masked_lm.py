"""Masked language modelling: the paper's rates, whole words, and training by the one loop."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

import nbllm as nb
from nbllm.core.errors import UserError
from nbllm.objectives import MaskedLM, WholeWordMaskedLM
from nbllm.objectives.whole_word_masked_lm import Words

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
NAMES = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), SPECIAL, strict=True))


@pytest.fixture(scope="module")
def texts():
    return nb.data.load("pydocs").select(range(12))


def wordpiece(texts):
    backend = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    return trained(backend, trainers.WordPieceTrainer, texts)


def sentencepiece(texts):
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    return trained(backend, trainers.BpeTrainer, texts)


def byte_level(texts):
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return trained(backend, trainers.BpeTrainer, texts)


def trained(backend, trainer, texts):
    backend.train_from_iterator(
        texts["text"], trainer(vocab_size=500, special_tokens=SPECIAL, show_progress=False)
    )
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, **NAMES)


KINDS = {"##": wordpiece, "▁": sentencepiece, "Ġ": byte_level}


@pytest.fixture(scope="module", params=sorted(KINDS))
def tokenizer(request, texts):
    return KINDS[request.param](texts)


def windows(tokenizer, texts, length=100):
    """Real text, its documents separated by [SEP]."""
    ids = [
        token for text in texts["text"] for token in [*tokenizer.encode(text, add_special_tokens=False), 3]
    ]
    return np.array(ids[: len(ids) // length * length]).reshape(-1, length)


@pytest.mark.parametrize("kind", [MaskedLM, WholeWordMaskedLM])
def test_rates_over_a_million_tokens_are_the_papers(tokenizer, kind):
    """15% are predicted; of these 80% are masked, 10% are drawn anew, 10% are kept."""
    objective = kind.for_tokenizer(tokenizer)
    regular = np.flatnonzero(~objective.is_special)
    tokens = regular[np.random.default_rng(1).integers(len(regular), size=(2000, 500))]
    batch = objective.batch(tokens, np.random.default_rng(2))
    inputs, targets = (batch[name][:, 1:-1].numpy() for name in ("inputs", "targets"))
    chosen = targets != -100
    assert np.array_equal(targets[chosen], tokens[chosen]) and np.array_equal(
        inputs[~chosen], tokens[~chosen]
    )
    masked = chosen & (inputs == tokenizer.mask_token_id)
    kept = chosen & (inputs == tokens)
    error = 0.0015 if kind is MaskedLM else 0.006  # 4 standard deviations; words are drawn, not tokens
    assert chosen.mean() == pytest.approx(0.15, abs=error)
    assert masked.mean() == pytest.approx(0.12, abs=error)
    assert (chosen & ~masked & ~kept).mean() == pytest.approx(0.015, abs=error)
    assert kept.mean() == pytest.approx(0.015, abs=error)
    drawn = inputs[chosen & ~masked & ~kept]
    assert not objective.is_special[drawn].any() and len(np.unique(drawn)) > 0.99 * len(regular)


def test_special_tokens_are_never_chosen_and_frame_each_window(tokenizer, texts):
    objective, raw = MaskedLM.for_tokenizer(tokenizer), windows(tokenizer, texts)
    assert objective.window_length(102) == 100
    batch = objective.batch(raw, np.random.default_rng(0))
    assert batch["inputs"].shape == (len(raw), 102)
    assert (batch["inputs"][:, 0] == 2).all() and (batch["inputs"][:, -1] == 3).all()
    assert not np.isin(batch["targets"].numpy(), range(5)).any()
    separators = batch["inputs"][:, 1:-1][torch.from_numpy(raw == 3)]
    assert len(separators) and (separators == 3).all()
    with pytest.raises(UserError, match="sequence_length is 2; 2 of it"):
        objective.window_length(2)


def test_the_draw_is_a_function_of_the_generator(tokenizer, texts):
    objective, raw = MaskedLM.for_tokenizer(tokenizer), windows(tokenizer, texts)
    one, same, other = (objective.batch(raw, np.random.default_rng(seed))["inputs"] for seed in (1, 1, 2))
    assert torch.equal(one, same) and not torch.equal(one, other)


def test_words_are_chosen_whole_or_not_at_all(tokenizer, texts):
    """Of words that the tokenizer itself tells apart; of Ġ's those of letters, for it cuts off 's and spaces too."""
    objective = WholeWordMaskedLM.for_tokenizer(tokenizer)
    text = " ".join(texts["text"][0].split()[:800])
    encoded = tokenizer(text, add_special_tokens=False)
    ids, words = np.array([encoded["input_ids"]]), encoded.word_ids()
    if words[-1] == 0:  # Metaspace marks its words, but counts them as one
        words = np.cumsum([token.startswith("▁") for token in encoded.tokens()]).tolist()
    batch = [objective.batch(ids, np.random.default_rng(seed))["targets"][0, 1:-1] for seed in range(20)]
    chosen = np.array([(targets != -100).numpy() for targets in batch])
    groups = {}
    for place, word in enumerate(words):
        groups.setdefault(word, []).append(place)
    several, is_byte_level = 0, "Ġ" in "".join(encoded.tokens())
    for places in groups.values():
        token_text = tokenizer.decode(ids[0, places]).strip().replace(" ", "")
        if is_byte_level and not token_text.isalpha():
            continue
        several += len(places) > 1
        assert (chosen[:, places].all(1) == chosen[:, places].any(1)).all(), token_text
    assert several > 50
    starts = Words(tokenizer).are_starts(ids)[0]
    assert starts.sum() == pytest.approx(len(groups), rel=0.1)  # and no more than a word is chosen at once


def test_words_of_a_byte_level_tokenizer(texts):
    tokenizer = byte_level(texts)
    text = "undefined variables, x12 == (foo)"
    ids = tokenizer.encode(text, add_special_tokens=False)
    starts = Words(tokenizer).are_starts(np.array([ids]))[0]
    words = []
    for token, begins in zip(ids, starts, strict=True):
        piece = tokenizer.decode([token])
        words = [*words, piece] if begins else [*words[:-1], words[-1] + piece]
    assert [word.strip() for word in words if word.strip()] == [
        "undefined", "variables", ",", "x", "12", "==", "(", "foo", ")",
    ]  # fmt: skip


def test_the_loss_is_torchs_cross_entropy_over_the_chosen_tokens(tokenizer, texts):
    objective = MaskedLM.for_tokenizer(tokenizer)
    lm = nb.LM.new("bert", tokenizer=tokenizer, num_layers=2, hidden_size=32, num_heads=2, max_positions=64)
    torch.nn.init.normal_(lm.model.head.bias, generator=torch.Generator().manual_seed(0))
    batch = objective.batch(windows(tokenizer, texts, 40)[:3], np.random.default_rng(0))
    loss, count = objective.loss(lm.model, batch)
    loss.backward()
    ours = {name: parameter.grad for name, parameter in lm.model.named_parameters()}
    lm.model.zero_grad()
    theirs = F.cross_entropy(
        lm.model(batch["inputs"]).flatten(0, 1), batch["targets"].flatten(), reduction="sum"
    )
    theirs.backward()
    assert count == int((batch["targets"] != -100).sum()) > 0
    torch.testing.assert_close(loss, theirs, rtol=1e-5, atol=1e-4)
    for name, parameter in lm.model.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(ours[name], parameter.grad, rtol=1e-4, atol=1e-4, msg=name)


def test_nothing_chosen_counts_nothing(tokenizer):
    objective = MaskedLM.for_tokenizer(tokenizer)
    lm = nb.LM.new("bert", tokenizer=tokenizer, num_layers=1, hidden_size=16, num_heads=2, max_positions=64)
    loss, count = objective.loss(lm.model, objective.batch(np.full((2, 5), 3), np.random.default_rng(0)))
    assert count == 0 and float(loss.detach()) == 0
    loss.backward()


def test_what_is_seen_and_predicted_is_shown_and_escaped(tokenizer):
    for module in (nb.objectives.masked_lm, nb.objectives.whole_word_masked_lm):
        shown = module.show("the function returns a list of objects <script> " * 4, tokenizer=tokenizer)
        assert "[MASK]" in shown.seen and len(shown.seen) == len(shown.predicted)
        assert any(shown.predicted) and "to predict" in repr(shown)
        html = shown._repr_html_()
        assert "<mark>[MASK]</mark>" in html and "<script" not in html


def test_tokenizers_that_cannot_be_used():
    plain = nb.data.train_tokenizer(["some text"], kind="byte")
    with pytest.raises(UserError, match="no mask token.*\n.*add_tokens"):
        MaskedLM.for_tokenizer(plain)


# ---- the one loop


def train(texts, tokenizer, folder, name, objective="masked_lm", family="bert", **changes):
    lm = nb.LM.new(
        family, tokenizer=tokenizer, num_layers=2, hidden_size=32, num_heads=2, max_positions=64, seed=1,
        **({"position_offset": 1} if family == "roberta" else {}),
    )  # fmt: skip
    settings = {
        "steps": 30, "batch_size": 4, "sequence_length": 48, "lr": 1e-3, "warmup_steps": 0, "schedule": "constant",
        "validation_interval": 10, "validation_tokens": 2000, "checkpoint_interval": 10, "precision": "float32",
        "num_threads": 1,
    }  # fmt: skip
    return nb.train(
        lm, texts.select(range(8)), validation=texts.select(range(8, 12)), objective=objective, folder=folder,
        name=name, **{**settings, **changes},
    )  # fmt: skip


@pytest.mark.parametrize(
    ("family", "objective"),
    [
        ("bert", "masked_lm"),
        ("roberta", "whole_word_masked_lm"),
        ("albert", "masked_lm"),
        ("distilbert", "masked_lm"),
    ],
)
def test_encoders_train_lower_the_loss_on_held_out_text_and_are_replayed(
    texts, tmp_path, family, objective, monkeypatch
):
    monkeypatch.setenv("NBLLM_CACHE", str(tmp_path / "cache"))
    tokenizer = wordpiece(texts)
    run = train(texts, tokenizer, tmp_path, "run", objective, family)
    run.wait(step=15, progress=False)
    run.rewind(10)
    run.wait(progress=False)
    assert run.state == "finished"
    held_out = [event["loss"] for event in run.events("evaluation")]
    assert held_out[-1] < held_out[0] - 0.05
    assert all("bits_per_byte" not in event for event in run.events("evaluation"))
    assert nb.replay(run, progress=False).identical
    opened = nb.load(run.checkpoints[-1].path)
    assert opened.config.family == family and len(opened.fill("the [MASK] returns", top=3)[0]) == 3


def test_objectives_and_networks_that_do_not_fit_are_refused_with_the_reason(texts, tmp_path, monkeypatch):
    monkeypatch.setenv("NBLLM_CACHE", str(tmp_path / "cache"))
    tokenizer = wordpiece(texts)
    with pytest.raises(UserError, match="masked_lm': it is a causal decoder.*\n.*nb.LM.new..bert\","):
        train(texts, tokenizer, tmp_path, "a", family="gpt2")
    with pytest.raises(UserError, match="causal_lm': it is an encoder.*\n.*with 'masked_lm'"):
        train(texts, tokenizer, tmp_path, "b", objective="causal_lm")
    assert not (tmp_path / "runs").exists()
