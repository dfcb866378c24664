"""MMLU with worked examples beside lm_eval: the same questions, in turn in one process; accuracy, likelihoods, speed.

    python -m tests.bench.bench_mmlu --data path/to/mmlu --subjects astronomy virology --limit 40

Both compute in float32 with the same weights, and neither reads answers that were kept.
"""

from __future__ import annotations

import argparse
import json
import logging
import tempfile
import time
import warnings
from pathlib import Path

from nbllm import evaluate, load
from nbllm.evaluation.splits import load_split
from nbllm.evaluation.tasks.mmlu import MMLU


def their_task(subject, data, folder, shots, limit):
    """Return lm_eval's task of a subject, reading the first `limit` of the same questions from JSON Lines."""
    import lm_eval
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.tasks._yaml_loader import load_yaml

    task, files = MMLU(subjects=(subject,)), {}
    for split in ("dev", "test"):
        records = [
            each for each in load_split(data, task.layout, (split,))[0] if each.file == f"{subject}_{split}"
        ]
        values = [next(task.items(each)) for each in records[: limit if split == "test" else None]]
        files[split] = str(Path(folder) / f"{subject}_{split}.jsonl")
        Path(files[split]).write_text("".join(json.dumps(value) + "\n" for value in values))
    config = load_yaml(Path(lm_eval.__file__).parent / "tasks/mmlu/default" / f"mmlu_{subject}.yaml")
    reading = {"dataset_path": "json", "dataset_name": None, "dataset_kwargs": {"data_files": files}}
    kept = {name: value for name, value in config.items() if name not in ("tag", "group")}
    return ConfigurableTask(config={**kept, **reading, "num_fewshot": shots})


def side_by_side(lm, subjects, data, *, shots, limit, batch_size=8):
    """Yield for each subject (subject, our accuracy, theirs, greatest difference of likelihoods, seconds of both)."""
    from lm_eval import evaluator
    from lm_eval.models.huggingface import HFLM

    with tempfile.TemporaryDirectory() as folder:
        lm.save(Path(folder) / "model")
        hf = HFLM(
            pretrained=str(Path(folder) / "model"), device="cpu", dtype="float32", batch_size=batch_size
        )
        for subject in subjects:
            task = their_task(subject, data, folder, shots, limit)
            begin = time.perf_counter()
            found = evaluator.evaluate(lm=hf, task_dict={"mmlu": task}, log_samples=True, bootstrap_iters=0)
            middle = time.perf_counter()
            settings = {"subjects": (subject,), "shots": shots, "limit": limit, "convention": "harness"}
            report = evaluate(lm, "mmlu", data=data, reuse=False, progress=False, resamples=100, **settings)
            end = time.perf_counter()
            ours = report.rows("mmlu").columns["log_probabilities"]
            samples = sorted(found["samples"]["mmlu"], key=lambda sample: sample["doc_id"])
            differences = [
                abs(one - other[0][0])
                for row, sample in zip(ours, samples, strict=True)
                for one, other in zip(row, sample["resps"], strict=True)
            ]
            accuracy = found["results"]["mmlu"]["acc,none"]
            yield (
                subject,
                report.metric("mmlu").value,
                accuracy,
                max(differences),
                end - middle,
                middle - begin,
            )


def main():
    """Print a line for each subject."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", required=True)
    parser.add_argument("--subjects", nargs="+", default=["astronomy", "virology"])
    parser.add_argument("--shots", type=int, default=5)
    parser.add_argument("--limit", type=int, default=40)
    parser.add_argument("--batch-size", type=int, default=8, help="of lm_eval")
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    lm = load("smollm2-135m-instruct")
    settings = {"shots": arguments.shots, "limit": arguments.limit, "batch_size": arguments.batch_size}
    ours = theirs = 0.0
    for subject, accuracy, other, difference, seconds, their_seconds in side_by_side(
        lm, arguments.subjects, arguments.data, **settings
    ):
        ours, theirs = ours + seconds, theirs + their_seconds
        print(
            f"{subject}: accuracy {accuracy:.4f}, lm_eval {other:.4f}; likelihoods differ by {difference:.1e} at most; "
            f"{seconds:.1f} s, lm_eval {their_seconds:.1f} s: {their_seconds / seconds:.1f}x"
        )
    print(f"together {theirs / ours:.1f}x")


if __name__ == "__main__":
    main()
