"""BERTScore is that of bert-score on the same encoder."""

import math
import warnings

import pytest
import torch
import transformers

import nbllm as nb
from nbllm.core.errors import DataError, UserError
from nbllm.evaluation import METRICS, bertscore_baseline, metric
from nbllm.models.zoo.known import MODELS
from tests.models.test_embedding import wordpiece

PREDICTIONS = ["the dog barks", "a cat then sleeps", "the bird , the bird", "dogs and cats"]
REFERENCES = [
    ["the dog sleeps", "a dog"],
    ["the cat and the dog"],
    ["the bird"],
    ["the dog barks at the cat"],
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny BERT of transformers with three layers, and its tokenizer."""
    folder, tokenizer = tmp_path_factory.mktemp("bert"), wordpiece()
    config = transformers.BertConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=3, num_attention_heads=4,
        intermediate_size=64, max_position_embeddings=48, initializer_range=0.3,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        transformers.BertModel(config).save_pretrained(folder)
    tokenizer.model_max_length = 48  # which bert-score reads
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def lm(folder):
    return nb.load(folder)


def theirs(folder, layers, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import bert_score

        found = bert_score.score(
            PREDICTIONS,
            REFERENCES,
            model_type=str(folder),
            num_layers=layers,
            nthreads=0,
            device="cpu",
            **options,
        )
    return {key: each.tolist() for key, each in zip(("precision", "recall", "f1"), found, strict=True)}


def close(found, expected):
    for key, values in expected.items():
        assert found[key] == pytest.approx(values, abs=1e-5), key


@pytest.mark.parametrize("idf", [False, True])
@pytest.mark.parametrize("layers", [0, 1, 3])
def test_scores_are_those_of_bert_score(lm, folder, layers, idf):
    found = metric("bertscore", num_layers=layers, idf=idf).compute(
        predictions=PREDICTIONS, references=REFERENCES, model_type=lm
    )
    close(found, theirs(folder, layers, idf=idf))
    named = metric("bertscore").compute(
        predictions=PREDICTIONS, references=REFERENCES, model_type=str(folder)
    )
    if layers == 3 and not idf:
        assert named["f1"] == found["f1"]  # the last layer, of a folder
    assert f"_L{layers}_{'idf' if idf else 'no-idf'}" in found["hashcode"]


def test_scores_are_rescaled_by_a_baseline(lm, folder, tmp_path):
    path = tmp_path / "baseline.tsv"
    path.write_text("LAYER,P,R,F\n0,0.1,0.2,0.3\n1,0.2,0.3,0.4\n2,0.5,0.4,0.45\n3,0.3,0.3,0.3\n")
    options = {"rescale_with_baseline": True, "baseline_path": str(path)}
    judged = metric("bertscore", num_layers=2, **options)
    found = judged.compute(predictions=PREDICTIONS, references=REFERENCES, model_type=lm)
    close(found, theirs(folder, 2, lang="en", **options))
    assert "baseline_path:baseline.tsv" in judged.signature and "-rescaled" in found["hashcode"]
    with pytest.raises(UserError, match="given together"):
        metric("bertscore", rescale_with_baseline=True)
    for text in ("", "LAYER,P,R,F\n", "LAYER,P,R,F\n" + "0,a,b,c\n" * 4):
        path.write_text(text)
        with pytest.raises(DataError, match="(?s)no baseline with a layer 2.*LAYER,P,R,F"):
            judged.compute(predictions=PREDICTIONS, references=REFERENCES, model_type=lm)


def test_a_baseline_is_what_pairs_of_unrelated_texts_score(lm, folder, tmp_path):
    texts = ["the dog barks", "a cat then sleeps", "the bird and", "", "dogs and cats", "the dog barks"]
    path = bertscore_baseline(texts, tmp_path / "baseline.tsv", model_type=lm)
    lines = [line.split(",") for line in path.read_text().splitlines()]
    assert lines[0] == ["LAYER", "P", "R", "F"] and [line[0] for line in lines[1:]] == ["0", "1", "2", "3"]
    options = {"rescale_with_baseline": True, "baseline_path": str(path)}
    rescaled = metric("bertscore", num_layers=2, **options)
    found = rescaled.compute(predictions=PREDICTIONS, references=REFERENCES, model_type=lm)
    close(found, theirs(folder, 2, lang="en", **options))  # bert-score reads the file too
    plain = metric("bertscore", num_layers=2).compute(
        predictions=PREDICTIONS, references=REFERENCES, model_type=lm
    )
    assert max(found["f1"]) < max(plain["f1"]) <= 1
    # Of two texts there is one pair, each way: its mean is the baseline, so that both together score 0.
    path = bertscore_baseline(texts[:2], tmp_path / "two.tsv", model_type=lm)
    zero = metric("bertscore", num_layers=3, rescale_with_baseline=True, baseline_path=str(path))
    both = zero.compute(predictions=texts[:2], references=texts[1::-1], model_type=lm)
    for key in ("precision", "recall", "f1"):
        assert sum(both[key]) == pytest.approx(0, abs=1e-5)
    with pytest.raises(DataError, match="at least two different texts"):
        bertscore_baseline(["a", "a", ""], tmp_path / "one.tsv", model_type=lm)


def test_one_reference_has_a_score_with_idf(lm):
    """Every token of it is in all references, so all weights are zero; bert-score divides by their sum."""
    judged = metric("bertscore", idf=True)
    found = judged.compute(predictions=["the dog"], references=["the cat"], model_type=lm)
    plain = metric("bertscore").compute(predictions=["the dog"], references=["the cat"], model_type=lm)
    assert 0 < found["f1"][0] < 1 and math.isfinite(plain["f1"][0])
    same = judged.compute(predictions=["the dog"], references=["the dog"], model_type=lm)
    assert same["f1"][0] == pytest.approx(1)


def test_an_empty_text_scores_nothing_and_padding_changes_nothing(lm):
    texts, golds = ["", "a cat", "a cat"], ["a cat", "", "the dog barks at the cat and the bird"]
    found = metric("bertscore").compute(predictions=texts, references=golds, model_type=lm)
    assert found["f1"][:2] == found["precision"][:2] == [0, 0]
    alone = metric("bertscore").compute(predictions=texts[2:], references=golds[2:], model_type=lm)
    assert alone["f1"][0] == pytest.approx(found["f1"][2], abs=1e-6)


def test_the_signature_names_the_encoder_by_its_weights(lm, folder):
    judged = metric("bertscore")
    judged.compute(predictions=["a"], references=["a"], model_type=lm)
    again = metric("bertscore")
    again.compute(predictions=["a"], references=["a"], model_type=nb.load(folder))
    assert "encoder:bert-" in judged.signature and again.signature == judged.signature
    other = lm.copy()
    with torch.no_grad():
        next(other.model.parameters()).add_(1)
    again.compute(predictions=["a"], references=["a"], model_type=other)
    assert again.signature != judged.signature


def test_what_cannot_be_an_encoder_is_refused(lm):
    inputs = {"predictions": ["a"], "references": ["a"]}
    with pytest.raises(UserError, match="(?s)all-minilm-l6-v2, reads English, not 'de'.*model_type"):
        metric("bertscore").compute(**inputs, lang="de")
    with pytest.raises(UserError, match="num_layers is 4; the model has 3"):
        metric("bertscore", num_layers=4).compute(**inputs, model_type=lm)
    causal = nb.LM.new("llama", tokenizer=lm.tokenizer, num_layers=1, hidden_size=16, num_heads=2)
    with pytest.raises(UserError, match="This needs an encoder"):
        metric("bertscore").compute(**inputs, model_type=causal)


def test_a_task_makes_rows_with_the_encoder_at_hand(lm):
    figure = METRICS["bertscore_f1"]()
    row = figure.row("the dog", ["the dog", "a cat"], model_type=lm)
    assert row["bertscore_f1"] == pytest.approx(1) and row.keys() >= {"precision", "recall"}


@pytest.mark.realmodel
def test_the_published_encoder_scores_as_bert_score_does():
    source = MODELS["all-minilm-l6-v2"].sources[-1]
    if source.find() is None:
        pytest.skip("HF_HUB_OFFLINE=1 nbllm fetch all-minilm-l6-v2")
    found = metric("bertscore", idf=True).compute(predictions=PREDICTIONS, references=REFERENCES, lang="en")
    expected = theirs(source.find(), 6, idf=True)
    for key, values in expected.items():
        assert found[key] == pytest.approx(values, abs=1e-4), key
