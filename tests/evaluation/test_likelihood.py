"""Against the sliding window of transformers' documentation, run on transformers' own model.

Source: https://huggingface.co/docs/transformers/perplexity
"""

import copy
import math

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from nbllm.core.errors import DataError, UserError
from nbllm.evaluation import EvaluationConfig, likelihood, measure_likelihoods
from nbllm.lm import LM
from nbllm.models import scoring

CONTEXT = 16


@torch.no_grad()
def recipe(model, input_ids, stride, context=CONTEXT):
    """The documented loop, but for the window's last token: nothing is predicted from it, so it is not fed.

    So a window holds one token more than the model has positions.
    """
    max_length = context + 1
    seq_len = input_ids.size(1)
    nll_sum, n_tokens, prev_end_loc = 0.0, 0, 0
    for begin_loc in range(0, seq_len, stride):
        end_loc = min(begin_loc + max_length, seq_len)
        trg_len = end_loc - max(prev_end_loc, 1)  # the very first token has nothing before it
        window = input_ids[:, begin_loc:end_loc]
        targets = window.clone()
        targets[:, :-trg_len] = -100
        logits = model(window[:, :-1]).logits
        nll_sum += float(cross_entropy(logits[0].double(), targets[0, 1:], reduction="sum"))
        n_tokens += trg_len
        prev_end_loc = end_loc
        if end_loc == seq_len:
            break
    return nll_sum, n_tokens


def text_of_length(tokenizer, length):
    """A text of exactly so many tokens."""
    text = "the cat sat on a mat and the dog ran " * 40
    return tokenizer.decode(tokenizer.encode(text)[:length])


@pytest.mark.parametrize("stride", [1, 3, 8, 16])
@pytest.mark.parametrize("num_windows", [1, 2, 5])
def test_sums_equal_the_documented_recipe(lm, reference, tokenizer, ids_of, stride, num_windows):
    length = CONTEXT + stride * (num_windows - 1) - 1  # the last window ends where the text does
    text = text_of_length(tokenizer, length)
    ids = ids_of(text)
    assert ids.size(1) == length + 2
    found = measure_likelihoods(lm, [text], EvaluationConfig(stride=stride))
    nats, count = recipe(reference, ids, stride)
    assert found.num_tokens[0] == count == length + 1
    assert found.nats[0] == pytest.approx(nats, rel=1e-5)


def test_every_document_equals_token_by_token(lm, one_by_one, ids_of, tokenizer, texts):
    found = measure_likelihoods(lm, texts, EvaluationConfig())
    expected = [one_by_one(text, CONTEXT // 2) for text in texts]
    assert max(len(tokenizer.encode(text)) for text in texts) > 3 * CONTEXT  # windows do slide
    np.testing.assert_allclose(found.nats, expected, rtol=1e-5)
    np.testing.assert_array_equal(found.num_tokens, [ids_of(text).size(1) - 1 for text in texts])
    np.testing.assert_array_equal(found.num_bytes, [len(text.encode()) for text in texts])


def test_the_window_matters(lm, texts):
    longest = [max(texts, key=len)]
    sums = [measure_likelihoods(lm, longest, EvaluationConfig(stride=s)).nats[0] for s in (1, 8, 16)]
    assert len({round(value, 3) for value in sums}) == 3


@pytest.mark.parametrize("batch_tokens", [1, 40, 100_000])
def test_batches_change_no_figure(lm, texts, batch_tokens):
    found = measure_likelihoods(lm, texts, EvaluationConfig(batch_tokens=batch_tokens))
    alone = [measure_likelihoods(lm, [text], EvaluationConfig()).nats[0] for text in texts]
    np.testing.assert_allclose(found.nats, alone, rtol=1e-5)


def test_without_an_end_token_the_first_token_is_not_predicted(lm, tokenizer, reference):
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.eos_token = None
    text = "the cat sat"
    ids = torch.tensor([tokenizer.encode(text)])
    found = measure_likelihoods(LM(lm.model, tokenizer), [text], EvaluationConfig())
    with torch.no_grad():
        nats = float(reference(ids, labels=ids).loss) * (ids.size(1) - 1)
    assert found.nats[0] == pytest.approx(nats, rel=1e-5) and found.num_tokens[0] == ids.size(1) - 1


def test_empty_documents_are_left_out(lm):
    found = measure_likelihoods(lm, ["", "the cat", ""], EvaluationConfig())
    assert len(found) == found.num_documents == 1 and not found.interrupted


@pytest.mark.parametrize("texts", [[], ["", ""]])
def test_no_text_is_said(lm, texts):
    with pytest.raises(DataError, match="no text to measure"):
        measure_likelihoods(lm, texts, EvaluationConfig())


def test_a_stride_beyond_the_context_is_refused(lm):
    with pytest.raises(UserError, match=r"stride of 17 skips tokens.*16"):
        measure_likelihoods(lm, ["the cat"], EvaluationConfig(stride=17))


def test_interruption_keeps_the_first_documents(lm, texts, monkeypatch):
    monkeypatch.setattr(likelihood, "_BATCHES_PER_GROUP", 1)
    whole = measure_likelihoods(lm, texts, EvaluationConfig(batch_tokens=64))
    calls, real = [], scoring.token_log_probabilities

    def interrupted(*args, **kwargs):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    monkeypatch.setattr(scoring, "token_log_probabilities", interrupted)
    part = measure_likelihoods(lm, texts, EvaluationConfig(batch_tokens=64))
    assert part.interrupted and 0 < len(part) < len(texts) == part.num_documents
    np.testing.assert_allclose(part.nats, whole.nats[: len(part)])
    assert len(part.num_tokens) == len(part.num_bytes) == len(part)


def test_interruption_before_anything_was_measured_is_raised(lm, texts, monkeypatch):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(scoring, "token_log_probabilities", interrupted)
    with pytest.raises(KeyboardInterrupt):
        measure_likelihoods(lm, texts, EvaluationConfig())


def test_agrees_with_score(lm, tokenizer):
    text = "the dog ran to see"
    (score,) = lm.score(text)
    found = measure_likelihoods(lm, [text], EvaluationConfig())
    closing = found.nats[0] + score.log_probability  # ours is charged for the end of the text, too
    assert found.num_tokens[0] == score.num_tokens + 1 and 0 < closing < math.log(len(tokenizer)) * 5
