"""Prompts, likelihoods and accuracies against EleutherAI's harness, run offline on our small sets."""

from __future__ import annotations

import importlib.util
import json
import logging
import sys
import types
import warnings
from pathlib import Path

import pytest

lm_eval = pytest.importorskip("lm_eval")

from lm_eval import evaluator  # noqa: E402
from lm_eval.api.task import ConfigurableTask  # noqa: E402
from lm_eval.tasks._yaml_loader import load_yaml  # noqa: E402

from nbllm.evaluation import TASKS, HarnessModel, Source, evaluate  # noqa: E402
from nbllm.evaluation.splits import EMBEDDED, load_split  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")
REAL = Path(__file__).parents[3] / "shared" / "data" / "mmlu"
CATALOGUE = Path(lm_eval.__file__).parent / "tasks"
# Our task, its settings, and the file of theirs.
MATCHES = {
    "arc_easy": ({"shots": 2}, "arc/arc_easy.yaml"),
    "arc_challenge": ({}, "arc/arc_challenge.yaml"),
    "hellaswag": ({"shots": 2}, "hellaswag/hellaswag.yaml"),
    "piqa": ({"shots": 1}, "piqa/piqa.yaml"),
    "winogrande": ({}, "winogrande/default.yaml"),
    "lambada": ({}, "lambada/lambada_openai.yaml"),
    "xnli": ({}, "xnli/xnli_en.yaml"),
    "glue_cola": ({"shots": 1}, "glue/cola/default.yaml"),
    "glue_sst2": ({"shots": 2}, "glue/sst2/default.yaml"),
    "glue_mrpc": ({"shots": 1}, "glue/mrpc/default.yaml"),
    "glue_qqp": ({"shots": 1}, "glue/qqp/default.yaml"),
    "glue_mnli": ({"shots": 1}, "glue/mnli/default.yaml"),
    "glue_qnli": ({"shots": 1}, "glue/qnli/default.yaml"),
    "glue_rte": ({"shots": 1}, "glue/rte/default.yaml"),
    "glue_wnli": ({"shots": 1}, "glue/wnli/default.yaml"),
    "boolq": ({"shots": 1}, "super_glue/boolq/default.yaml"),
    "cb": ({"shots": 1}, "super_glue/cb/default.yaml"),
    "copa": ({}, "super_glue/copa/default.yaml"),
    "multirc": ({"shots": 1}, "super_glue/multirc/default.yaml"),
    "wic": ({"shots": 1}, "super_glue/wic/default.yaml"),
    "wsc": ({"shots": 2}, "super_glue/wsc/default.yaml"),
    "record": ({"shots": 1}, "super_glue/record/default.yaml"),
    "nq_open": ({"shots": 2}, "nq_open/nq_open.yaml"),
    "gsm8k": ({"shots": 3}, "gsm8k/gsm8k.yaml"),
    "mmlu astronomy": ({"shots": 5}, "mmlu/default/mmlu_astronomy.yaml"),
    "mmlu elementary_mathematics": (
        {"shots": 2, "form": "cloze"},
        "mmlu/continuation/mmlu_elementary_mathematics.yaml",
    ),
    "cmmlu astronomy": ({"shots": 1}, "cmmlu/cmmlu_astronomy.yaml"),
    "truthfulqa": ({}, "truthfulqa/truthfulqa_mc1.yaml"),
}


@pytest.fixture(scope="module", autouse=True)
def quiet():
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


@pytest.fixture(autouse=True)
def squad_metrics(monkeypatch):
    """Let their ReCoRD be imported: it scores with a module that transformers 5 has removed; here it only asks."""
    if importlib.util.find_spec("transformers.data.metrics") is None:
        for name in ("transformers.data.metrics", "transformers.data.metrics.squad_metrics"):
            monkeypatch.setitem(sys.modules, name, types.ModuleType(name))


def ours(key):
    name, _, subject = key.partition(" ")
    settings = dict(MATCHES[key][0])
    return TASKS[name](**settings, **({"subjects": (subject,)} if subject else {}))


def theirs(key, tmp_path):
    """Return their task, reading our small set."""
    task, (settings, path) = ours(key), MATCHES[key]
    config = {
        name: value
        for name, value in load_yaml(CATALOGUE / path, resolve_func=True).items()
        if name not in ("tag", "group", "class", "include")
    }
    files = {}
    for split in filter(
        None, {config.get(f"{kind}_split") for kind in ("test", "validation", "training", "fewshot")}
    ):
        wanted = task.layout.shot_splits if split in ("train", "dev") else task.layout.splits
        if not wanted:
            continue
        records, _ = load_split(None, task.layout, wanted)
        if getattr(task, "subjects", ()):
            records = [each for each in records if each.file.startswith(task.subjects[0])]
        if key.startswith("mmlu"):
            values = [next(task.items(each)) for each in records]
        else:
            values = [dict(each.values) for each in records]
        file = tmp_path / f"{split}.jsonl"
        file.write_text("".join(json.dumps(value) + "\n" for value in values))
        files[split] = str(file)
    return ConfigurableTask(
        config={
            **config, "dataset_path": "json", "dataset_name": None, "dataset_kwargs": {"data_files": files},
            "num_fewshot": settings.get("shots", 0),
            "fewshot_config": {**(config.get("fewshot_config") or {}), "sampler": "first_n"},
        }
    )  # fmt: skip


@pytest.mark.parametrize("key", MATCHES)
def test_every_request_is_theirs_to_the_character(key, tmp_path):
    task, other = ours(key), theirs(key, tmp_path)
    other.build_all_requests(limit=None, rank=0, world_size=1)
    expected = {}
    for each in other.instances:
        expected.setdefault(each.doc_id, []).append(tuple(each.args)[:2])
    examples, _ = task.examples(Source(None))
    assert len(examples) == len(expected)
    for index, example in enumerate(examples):
        requests = task.requests(example)
        if key == "truthfulqa":  # theirs is two tasks
            requests = requests[: len(example["choices"])]
        if hasattr(requests[0], "continuation"):
            found = [(str(request.context), request.continuation) for request in requests]
        else:
            found = [(str(request.prompt), expected[index][0][1]) for request in requests]
        assert found == expected[index]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A tiny random model as theirs and as ours."""
    import torch
    from lm_eval.models.huggingface import HFLM
    from transformers import LlamaConfig, LlamaForCausalLM

    from nbllm.data import train_tokenizer
    from nbllm.lm import LM
    from nbllm.models.loading import load_model

    texts = [each.read_text("utf-8") for each in sorted(EMBEDDED.rglob("*_test.csv"))]
    tokenizer = train_tokenizer(texts, vocab_size=500)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=1024, bos_token_id=0, eos_token_id=0, initializer_range=0.3,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        reference = LlamaForCausalLM(config).eval()
    folder = tmp_path_factory.mktemp("model")
    reference.save_pretrained(folder)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        other = HFLM(pretrained=reference, tokenizer=tokenizer, device="cpu", batch_size=4)
    return LM(load_model(folder), tokenizer), other


@pytest.mark.parametrize(
    "key", ["mmlu astronomy", "mmlu elementary_mathematics", "hellaswag", "lambada", "winogrande"]
)
def test_likelihoods_and_accuracy_are_theirs(key, model, tmp_path):
    lm, hf = model
    task, other = ours(key), theirs(key, tmp_path)
    found = evaluator.evaluate(lm=hf, task_dict={"other": other}, log_samples=True, bootstrap_iters=0)
    report = evaluate(lm, task, progress=False, resamples=20, reuse=False)
    rows = report.rows(task.name).columns
    samples = sorted(found["samples"]["other"], key=lambda sample: sample["doc_id"])
    for index, sample in enumerate(samples):
        likelihoods = [each[0][0] for each in sample["resps"]]
        if key == "lambada":
            assert -rows["nats"][index] == pytest.approx(likelihoods[0], abs=1e-4)
            assert rows["correct"][index] == sample["acc"]
        else:
            assert rows["log_probabilities"][index] == pytest.approx(likelihoods, abs=1e-4)
    result = found["results"]["other"]
    assert report.metric("accuracy").value == pytest.approx(result["acc,none"])
    if "acc_norm,none" in result:
        assert report.metric("normalized_accuracy").value == pytest.approx(result["acc_norm,none"])
    if key == "lambada":
        assert report.metric("word_perplexity").value == pytest.approx(result["perplexity,none"], rel=1e-4)


@pytest.mark.parametrize("key", ["mmlu astronomy", "hellaswag", "nq_open"])
def test_their_evaluator_runs_our_model(key, model, tmp_path):
    lm, hf = model
    settings = {"log_samples": True, "bootstrap_iters": 0, "limit": 4}
    found, expected = (
        evaluator.evaluate(lm=each, task_dict={"other": theirs(key, tmp_path)}, **settings)
        for each in (HarnessModel(lm), hf)
    )
    assert {k: v for k, v in found["results"]["other"].items() if isinstance(v, float)} == {
        k: v for k, v in expected["results"]["other"].items() if isinstance(v, float)
    }
    for one, two in zip(found["samples"]["other"], expected["samples"]["other"], strict=True):
        if key == "nq_open":
            assert one["resps"] == two["resps"]
        else:
            for ours_, theirs_ in zip(one["resps"], two["resps"], strict=True):
                assert ours_[0][0] == pytest.approx(theirs_[0][0], abs=1e-4) and ours_[0][1] == theirs_[0][1]


def test_whole_texts_are_as_likely_as_theirs(model):
    from lm_eval.api.instance import Instance

    lm, hf = model
    texts = ["The cat sat on the mat.", "What is 7 times 8?"]
    asked = [Instance("loglikelihood_rolling", {}, (text,), 0) for text in texts]
    assert HarnessModel(lm).loglikelihood_rolling(asked) == pytest.approx(
        hf.loglikelihood_rolling(asked), abs=1e-4
    )


@pytest.mark.slow
@pytest.mark.realmodel
@pytest.mark.realdata
@pytest.mark.skipif(not REAL.is_dir(), reason="needs the real MMLU")
def test_a_published_model_has_their_accuracy_on_three_subjects_of_mmlu(smollm2):
    from nbllm import load
    from tests.bench.bench_mmlu import side_by_side

    subjects = ["astronomy", "philosophy", "high_school_mathematics"]
    found = list(side_by_side(load("smollm2-135m-instruct"), subjects, REAL, shots=1, limit=6))
    assert [subject for subject, *_ in found] == subjects
    for _, ours_, theirs_, difference, *_ in found:
        assert ours_ == theirs_ and difference < 1e-4
