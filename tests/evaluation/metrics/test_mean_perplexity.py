"""The perplexity of each text, as transformers' model gives it."""

import math

import pytest
import torch

from nbllm.core.errors import DataError, UserError
from nbllm.evaluation import METRICS, metric
from tests.evaluation.conftest import make_texts


def expected(reference, tokenizer, text, start=True, most=None):
    ids = ([tokenizer.eos_token_id] if start else []) + tokenizer.encode(text)
    ids = torch.tensor([ids[:most]])
    with torch.no_grad():
        logits = reference(ids[:, :-1]).logits.log_softmax(-1)
    return math.exp(-float(logits[0].gather(1, ids[0, 1:, None]).double().mean()))


def test_it_is_that_of_transformers_model(lm, reference, tokenizer):
    short = [text for text in make_texts(20, 1, 5) if 2 <= len(tokenizer.encode(text)) < 16]
    assert len({len(tokenizer.encode(text)) for text in short}) > 3
    judged = metric("perplexity", model_id=lm)
    for start in (True, False):
        values = [expected(reference, tokenizer, text, start) for text in short]
        found = judged.compute(predictions=short, add_start_token=start)
        assert found["perplexities"] == pytest.approx(values, rel=1e-4)
        assert found["mean_perplexity"] == pytest.approx(sum(values) / len(values), rel=1e-4)
        assert f"start:{'document' if start else 'none'}" in judged.signature and "model:" in judged.signature


def test_a_long_text_is_read_whole_or_cut_where_asked(lm, reference, tokenizer, texts):
    long = next(text for text in texts if len(tokenizer.encode(text)) > 30)
    cut = metric("perplexity").compute(predictions=[long], model_id=lm, max_length=10)
    assert cut["mean_perplexity"] == pytest.approx(expected(reference, tokenizer, long, most=10), rel=1e-4)
    whole = metric("perplexity").compute(predictions=[long], model_id=lm)
    (score,) = lm.score([long])
    assert whole["mean_perplexity"] == pytest.approx(math.exp(-score.log_probability / score.num_tokens))


def test_refusals(lm):
    with pytest.raises(UserError, match="(?s)No model is given.*model_id=lm"):
        metric("perplexity").compute(predictions=["a"])
    with pytest.raises(DataError, match=r"predictions\[1\] is '', which has no token to predict"):
        metric("perplexity").compute(predictions=["a", ""], model_id=lm)
    with pytest.raises(UserError, match="A perplexity needs a model"):
        METRICS["mean_perplexity"]().row("a")
