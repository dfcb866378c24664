"""Against the sliding window of transformers' documentation, run on transformers' own model.

Source: https://huggingface.co/docs/transformers/perplexity
"""

import copy
import math

import numpy as np
import pytest
import torch
from tokenizers.processors import TemplateProcessing
from torch.nn.functional import cross_entropy

from nbllm.core.errors import UserError
from nbllm.data.encoding import encode_text
from nbllm.evaluation import (
    DocumentLikelihood,
    EvaluationConfig,
    Generate,
    Likelihood,
    answer,
    answer_examples,
    measuring,
)
from nbllm.evaluation.preparing import split_tokens
from nbllm.evaluation.tasks.perplexity import PredictText
from nbllm.inference import generate_ids
from nbllm.inference.config import SamplingConfig
from nbllm.lm import LM
from nbllm.models import scoring

CONTEXT = 16


class Found:
    """Likelihoods by document, as arrays."""

    def __init__(self, scores):
        self.nats = np.array([-score.log_probability for score in scores])
        self.num_tokens = np.array([score.num_tokens for score in scores])
        self.num_bytes = np.array([score.num_bytes for score in scores])


def measure_documents(lm, texts, *, stride=None, **options):
    return Found(answer(lm, [DocumentLikelihood(text, stride) for text in texts], **options))


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
    found = measure_documents(lm, [text], stride=stride)
    nats, count = recipe(reference, ids, stride)
    assert found.num_tokens[0] == count == length + 1
    assert found.nats[0] == pytest.approx(nats, rel=1e-5)


def test_every_document_equals_token_by_token(lm, one_by_one, ids_of, tokenizer, texts):
    found = measure_documents(lm, texts)
    expected = [one_by_one(text, CONTEXT // 2) for text in texts]
    assert max(len(tokenizer.encode(text)) for text in texts) > 3 * CONTEXT  # windows do slide
    np.testing.assert_allclose(found.nats, expected, rtol=1e-5)
    np.testing.assert_array_equal(found.num_tokens, [ids_of(text).size(1) - 1 for text in texts])
    np.testing.assert_array_equal(found.num_bytes, [len(text.encode()) for text in texts])


def test_the_window_matters(lm, texts):
    longest = [max(texts, key=len)]
    sums = [measure_documents(lm, longest, stride=s).nats[0] for s in (1, 8, 16)]
    assert len({round(value, 3) for value in sums}) == 3


@pytest.mark.parametrize("batch_tokens", [1, 40, 100_000])
def test_batches_change_no_figure(lm, texts, batch_tokens):
    found = measure_documents(lm, texts, batch_tokens=batch_tokens)
    alone = [measure_documents(lm, [text]).nats[0] for text in texts]
    np.testing.assert_allclose(found.nats, alone, rtol=1e-5)


def test_without_a_token_before_documents_the_first_is_not_predicted(lm, tokenizer, reference):
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.bos_token = tokenizer.eos_token = None
    text = "the cat sat"
    ids = torch.tensor([tokenizer.encode(text)])
    found = measure_documents(LM(lm.model, tokenizer), [text])
    with torch.no_grad():
        nats = float(reference(ids, labels=ids).loss) * (ids.size(1) - 1)
    assert found.nats[0] == pytest.approx(nats, rel=1e-5) and found.num_tokens[0] == ids.size(1) - 1


@pytest.mark.parametrize("stride, message", [(17, r"stride of 17 skips tokens.*16"), (0, "greater than 0")])
def test_a_stride_that_skips_tokens_is_refused(lm, stride, message):
    with pytest.raises(UserError, match=message):
        measure_documents(lm, ["the cat"], stride=stride)


def answered(lm, texts, batch_tokens=64):
    config = EvaluationConfig(batch_tokens=batch_tokens, reuse=False)
    rows = answer_examples(lm, PredictText(), [{"text": text} for text in texts], config)
    return [row["nats"] for row in rows]


def test_interruption_keeps_the_first_documents(lm, texts, monkeypatch):
    monkeypatch.setattr(measuring, "_BATCHES_PER_GROUP", 1)
    whole = answered(lm, texts)
    calls, real = [], scoring.token_log_probabilities

    def interrupted(*args, **kwargs):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    monkeypatch.setattr(scoring, "token_log_probabilities", interrupted)
    part = answered(lm, texts)
    assert 0 < len(part) < len(texts) == len(whole)
    np.testing.assert_allclose(part, whole[: len(part)])


def test_interruption_before_anything_was_measured_is_raised(lm, texts, monkeypatch):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(scoring, "token_log_probabilities", interrupted)
    with pytest.raises(KeyboardInterrupt):
        answered(lm, texts)


def test_agrees_with_score(lm, tokenizer):
    text = "the dog ran to see"
    (score,) = lm.score(text)
    found = measure_documents(lm, [text])
    closing = found.nats[0] + score.log_probability  # ours is charged for the end of the text, too
    assert found.num_tokens[0] == score.num_tokens + 1 and 0 < closing < math.log(len(tokenizer)) * 5


def test_a_continuation_is_what_transformers_predicts_after_its_context(lm, reference, tokenizer):
    pairs = [("the cat sat", " on a mat"), ("the dog ran to see", " naïve 日本"), ("if x = 1 ", "return")]
    found = answer(lm, [Likelihood(*pair) for pair in pairs])
    for (context, continuation), score in zip(pairs, found, strict=True):
        ids = tokenizer.encode(context + continuation)
        begin = len(tokenizer.encode(context.rstrip()))
        assert ids[:begin] == tokenizer.encode(context.rstrip())
        with torch.no_grad():
            logits = reference(torch.tensor([ids])).logits[0].double().log_softmax(-1)
        expected = sum(float(logits[i - 1, ids[i]]) for i in range(begin, len(ids)))
        assert score.log_probability == pytest.approx(expected, rel=1e-5)
        assert (score.num_tokens, score.num_bytes) == (len(ids) - begin, len(continuation.encode()))


def test_an_empty_context_is_the_beginning_of_a_document(lm):
    (found,) = answer(lm, [Likelihood("", "the dog ran")])
    (score,) = lm.score("the dog ran")
    assert found.log_probability == pytest.approx(score.log_probability, rel=1e-6)
    with pytest.raises(UserError, match="empty continuation"):
        Likelihood("the", "")


def test_a_token_across_the_border_takes_nothing_from_the_continuation(lm, tokenizer):
    """EleutherAI/lm-evaluation-harness#1053: encoded together, "h" + "e" is one token, and nothing is left of "e"."""
    assert len(tokenizer.encode("he")) == 1
    context, continuation = split_tokens(lm, "h", "e")
    assert (context, continuation) == (tokenizer.encode("h"), tokenizer.encode("e"))
    (score,) = answer(lm, [Likelihood("h", "e")])
    assert score.num_tokens == 1 and score.log_probability < 0


def test_a_tokenizer_that_begins_texts_begins_contexts_too(lm, tokenizer):
    begun = copy.deepcopy(tokenizer)
    begun.bos_token = begun.eos_token
    backend = begun.backend_tokenizer
    backend.post_processor = TemplateProcessing(
        single=f"{begun.bos_token} $A", special_tokens=[(begun.bos_token, begun.bos_token_id)]
    )
    assert begun("the cat")["input_ids"][0] == begun.bos_token_id
    context, continuation = split_tokens(LM(lm.model, begun), "the cat", " sat")
    assert context + continuation == [begun.bos_token_id, *tokenizer.encode("the cat sat")]


def test_answers_of_all_kinds_come_in_the_order_of_the_requests(lm, texts):
    sampled = SamplingConfig(temperature=1.0, max_new_tokens=3)
    requests = [
        Generate("the cat", sampled),
        Likelihood("the", " cat"),
        DocumentLikelihood(texts[0], 3),
        Generate("the dog", SamplingConfig(temperature=0.0, max_new_tokens=5)),
        DocumentLikelihood(texts[1]),
        Likelihood("the cat", " sat on"),
        Generate("a mat", sampled),
    ]
    together = answer(lm, requests)
    for request, found in zip(requests, together, strict=True):
        (alone,) = answer(lm, [request])
        if isinstance(request, Generate):
            assert found == alone and found.prompt == request.prompt
        else:
            assert found.log_probability == pytest.approx(alone.log_probability, rel=1e-5)
            assert found.num_tokens == alone.num_tokens


def test_a_control_token_that_a_prompt_spells_is_plain_as_in_a_context(lm, tokenizer):
    text = f"a{tokenizer.eos_token}"
    plain = encode_text(tokenizer, text)
    assert plain != tokenizer(text)["input_ids"]
    sampling = SamplingConfig(temperature=0, max_new_tokens=1)
    (made,) = answer(lm, [Generate(text, sampling)])
    expected = generate_ids(lm.model, [plain], sampling, eos_id=tokenizer.eos_token_id)[0]
    assert made.tokens == expected and made.prompt == text
    assert split_tokens(lm, text, " on")[0] == plain


def test_an_interrupted_generation_is_no_answer(lm, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(type(lm.model), "hidden", interrupted)
    with pytest.raises(KeyboardInterrupt):
        answer(lm, [Generate("the cat")])
