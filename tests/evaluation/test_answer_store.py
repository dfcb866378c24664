"""Answers kept on disk: nothing is computed twice, and nothing is taken for another model's or another request's."""

import copy

import pytest
import torch

from nbllm.evaluation import (
    DocumentLikelihood,
    EvaluationConfig,
    Generate,
    Likelihood,
    Source,
    answering,
    evaluate,
    measuring,
    prepare,
    reproduce,
)
from nbllm.evaluation.answer_store import AnswerStore, answers_of, key_of_model
from nbllm.evaluation.answering import answer_prepared
from nbllm.evaluation.measuring import answer_examples
from nbllm.evaluation.tasks.mmlu import MMLU
from nbllm.inference.config import SamplingConfig
from nbllm.lm import LM
from tests.evaluation.conftest import perturbed

SAMPLED = SamplingConfig(temperature=1.0, max_new_tokens=4)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("NBLLM_ANSWERS", str(tmp_path / "answers"))
    return tmp_path / "answers"


@pytest.fixture
def computed(monkeypatch):
    """How many requests the model answered."""
    counts = []

    def counting(real):
        def answer(lm, prepared, batch_tokens):
            counts.append(len(prepared))
            return real(lm, prepared, batch_tokens)

        return answer

    real = {kind: counting(function) for kind, function in answering._ANSWERING.items()}
    monkeypatch.setattr(answering, "_ANSWERING", real)
    return counts


def run(lm, requests):
    with answers_of(lm) as store:
        return answer_prepared(lm, prepare(lm, requests), store=store)


def test_every_kind_of_answer_comes_back_as_it_was(lm, folder, computed):
    requests = [
        Likelihood("the cat", " sat"),
        DocumentLikelihood("the dog ran", 3),
        Generate("the cat", SAMPLED),
        Generate("the dog", SamplingConfig(temperature=0.0, max_new_tokens=3, stop=("x",))),
    ]
    first = run(lm, requests)
    assert sum(computed) == 4
    again = run(lm, [*requests, Likelihood("the cat", " ran")])  # what is added is all that is computed
    assert sum(computed) == 5 and again[:4] == first
    assert [type(each) for each in again[:4]] == [type(each) for each in first]
    assert vars(again[2]) == vars(first[2]) and again[0].greedy == first[0].greedy


def test_two_models_keep_their_own_answers(lm, folder):
    other = perturbed(lm, 0.5)
    request = [Likelihood("the cat", " sat")]
    assert run(lm, request) != run(other, request)
    assert run(lm, request) != run(other, request)
    assert len(list(folder.iterdir())) == 2


def test_the_key_holds_what_the_answer_depends_on(lm, tokenizer):
    requests = [
        Likelihood("the cat", " sat"),
        Likelihood("the cat sat", " sat"),
        Likelihood("the cat", " ran"),
        DocumentLikelihood("the cat sat"),
        DocumentLikelihood("the cat sat", 3),
        Generate("the cat", SAMPLED),
        Generate("the cat", SamplingConfig(temperature=1.0, max_new_tokens=4, seed=1)),
        Generate("the cat", SamplingConfig(temperature=0.5, max_new_tokens=4)),
        Generate("the cat", SamplingConfig(temperature=1.0, max_new_tokens=4, stop=("x",))),
    ]
    assert len({each.key for each in prepare(lm, requests)}) == len(requests)


def test_four_draws_from_one_prompt_stay_four(lm, folder, computed):
    requests = [Generate("the cat", SAMPLED)] * 4
    first = run(lm, requests)
    assert len(set(first)) > 1
    assert run(lm, requests) == first and computed == [4]
    assert run(lm, [*requests, requests[0]])[:4] == first  # the fifth is drawn after the others
    assert computed == [4, 5]


def test_a_draw_without_a_seed_is_not_kept(lm, folder, computed):
    request = [Generate("the cat", SamplingConfig(temperature=1.0, max_new_tokens=4, seed=None))]
    run(lm, request)
    run(lm, request)
    assert computed == [1, 1]


def test_an_interrupted_evaluation_goes_on_where_it_was(lm, folder, computed, monkeypatch):
    real, calls = measuring.answer_prepared, []

    def answer(*args, **options):
        calls.append(1)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return real(*args, **options)

    monkeypatch.setattr(measuring, "_groups", lambda sizes, most: [(i, i + 1) for i in range(len(sizes))])
    monkeypatch.setattr(measuring, "answer_prepared", answer)
    task = MMLU(subjects=["astronomy"])
    examples, _ = task.examples(Source(lm))
    part = answer_examples(lm, task, examples, EvaluationConfig(), show_progress=False)
    assert len(part) == 5 and sum(computed) == 20
    whole = answer_examples(lm, task, examples, EvaluationConfig(), show_progress=False)
    assert whole[:5] == part and len(whole) == 12 and sum(computed) == 48
    answer_examples(lm, task, examples, EvaluationConfig(reuse=False), show_progress=False)
    assert sum(computed) == 96


def test_a_model_that_may_compute_something_else_has_no_key(lm):
    key = key_of_model(lm)
    same = copy.copy(lm)
    same.model = copy.deepcopy(lm.model)
    assert key_of_model(same) == key and key_of_model(perturbed(lm, 1e-3)) != key
    assert key_of_model(LM(lm.model, lm.tokenizer, end_tokens=[5])) != key  # it ends its texts elsewhere
    handle = same.model.blocks[0].register_forward_hook(lambda *_: None)
    assert key_of_model(same) is None
    handle.remove()
    assert key_of_model(same) == key
    same.model.blocks[0].forward = lambda x, context: x
    assert key_of_model(same) is None
    del same.model.blocks[0].forward

    class Scaled(torch.nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    same.model.blocks[0].feed_forward.up = Scaled(24, 96)
    assert key_of_model(same) is None


def test_a_damaged_file_or_one_that_cannot_be_written_costs_only_time(
    lm, folder, computed, tmp_path, monkeypatch
):
    request = [Likelihood("the cat", " sat")]
    first = run(lm, request)
    (file,) = folder.iterdir()
    file.write_bytes(b"no database" * 1000)
    assert run(lm, request) == first and sum(computed) == 2
    assert run(lm, request) == first and sum(computed) == 2
    store = AnswerStore(tmp_path / "other.sqlite")
    store.close()
    with pytest.warns(UserWarning, match="cannot be kept"):
        store.add({b"key": 1})
    assert store.find([b"key"]) == {}
    (tmp_path / "blocked").write_text("a file")
    monkeypatch.setenv("NBLLM_ANSWERS", str(tmp_path / "blocked" / "answers"))
    with pytest.warns(UserWarning, match="Answers are not kept"):
        assert run(lm, request) == first


def test_an_added_task_computes_only_its_own(lm, folder, computed):
    first = evaluate(lm, MMLU(subjects=["astronomy"]), progress=False, resamples=20)
    before = sum(computed)
    more = evaluate(
        lm, ["mmlu", "perplexity"], data={"perplexity": ["the cat sat"]}, progress=False, resamples=20
    )
    assert sum(computed) == before + 24 * 4 + 1
    assert (
        more.rows("mmlu").columns["log_probabilities"][:12] == first.rows("mmlu").columns["log_probabilities"]
    )


def test_reproducing_a_report_computes_it_again(lm, folder, computed):
    report = evaluate(lm, "perplexity", data=["the cat sat"], progress=False, resamples=20)
    assert reproduce(report, progress=False).agrees and sum(computed) == 2
