"""`nb.evaluate`: tasks measured on a model, and one report of how it was made and what was found."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from nbllm.core.quantities import size
from nbllm.core.report.figures import Metric
from nbllm.core.report.report import Report
from nbllm.core.report.sections import KeyValues, Metrics, Section
from nbllm.evaluation.comparison import check_comparable, comparison_section
from nbllm.evaluation.config import EvaluationConfig
from nbllm.evaluation.reproduction import reproduction_section
from nbllm.evaluation.run_sections import run_details, run_sections, training_metrics
from nbllm.evaluation.tasks.base import TaskResult
from nbllm.evaluation.tasks.catalogue import TASKS
from nbllm.evaluation.texts import held_out_texts

if TYPE_CHECKING:
    from nbllm.lm import LM
    from nbllm.runs.run import Run

_ACTIVATIONS = {"gelu": "GELU", "gelu_tanh": "GELU (tanh)", "silu": "SiLU", "relu": "ReLU"}
_FAMILIES = {"gpt2": "GPT-2", "llama": "LLaMA", "qwen2": "Qwen2"}


def evaluate(
    lm: LM,
    tasks: str | Sequence[str] = ("perplexity",),
    *,
    data: Any = None,
    run: Run | None = None,
    against: Report | None = None,
    title: str | None = None,
    progress: bool = True,
    **config: Any,
) -> Report:
    """Measure a model, and return a report that also says how the model was made.

    Args:
        lm: The model.
        tasks: Names of tasks: "perplexity".
        data: Held-out documents: a data set with a `text` column, a `DatasetDict` (its held-out split), a token
            store, a list of texts; or several of them by name, each measured on its own: `{"mine": held_out,
            "other": other}`. `None`: what `run` held out, or else the held-out tenth of pydocs; the report says
            which.
        run: The run that made the model: its curve, actions, samples and settings become part of the report.
        against: An earlier report of the same tasks on the same texts, as of the model before it was trained further:
            what changed becomes part of the report, with the interval of the paired difference over documents.
        title: The report's title.
        progress: Whether a line says how far it is.
        **config: Fields of `EvaluationConfig`: stride, max_documents, confidence, resamples, seed.

    Returns:
        The report: shown in a cell, `report.save("report.html")` (or .md, .json) and `report.metric(name)`.
        Interrupting reports what was measured so far, and says so.

    Raises:
        UserError: A task or setting is unknown (the nearest is named) or out of range; or `against` measured
            something else.
        DataError: There is no text to measure.
    """
    settings = EvaluationConfig.from_dict(config)
    names = [tasks] if isinstance(tasks, str) else list(tasks)
    chosen = {name: TASKS[name] for name in names}  # a wrong name is an error before any work is done
    texts = held_out_texts(lm, data, run, settings)
    jobs = [(task, text, text.subject(name, settings)) for text in texts for name, task in chosen.items()]
    if against is not None:
        check_comparable(against, [subject for _, _, subject in jobs])
    results = [
        task(lm, text.documents, settings, subject=subject, show_progress=progress)
        for task, text, subject in jobs
    ]
    report = Report(title=title or _title(lm, run), generator=_generator())
    report.add(_summary(lm, run, results))
    if against is not None:
        found = [section for result in results for section in result.sections]
        report.add(comparison_section(against, Report("", found), settings))
    report.add(_model(lm))
    if run is not None:
        report.add(*run_sections(run))
    for result in results:
        report.add(*result.sections)
    if run is not None:
        report.add(*run_details(run))
    return report.add(reproduction_section(texts, settings, run))


def _title(lm: LM, run: Run | None) -> str:
    what = f"A {_FAMILIES.get(lm.config.family, lm.config.family)} language model of {_count(lm)} parameters"
    return what if run is None else f"{what}: the run {run.name}"


def _summary(lm: LM, run: Run | None, results: Sequence[TaskResult]) -> Section:
    figures = [metric for result in results for metric in result.headline]
    figures += [] if run is None else training_metrics(run)
    figures.append(Metric(name="parameters", value=lm.num_parameters))
    return Metrics(
        title="Summary",
        note=" ".join(result.sentence for result in results),
        metrics=tuple(figures),
        prominent=True,
    )


def _model(lm: LM) -> KeyValues:
    shape = lm.config
    weight = lm.model.embedding.weight
    memory = sum(parameter.nbytes for parameter in lm.model.parameters())
    activation = _ACTIVATIONS.get(shape.activation, shape.activation)
    heads = f"{shape.num_heads} of width {shape.head_dim}"
    if shape.num_kv_heads != shape.num_heads:
        heads += f", {shape.num_kv_heads} for keys and values"
    return KeyValues(
        title="The model",
        entries=(
            ("family", _FAMILIES.get(shape.family, shape.family)),
            ("layers", shape.num_layers),
            ("width", shape.hidden_size),
            ("attention heads", heads),
            ("feed-forward", f"{shape.intermediate_size:,} wide, {activation}{', gated' * shape.gated}"),
            ("positions", f"{shape.max_positions}, {shape.positions}"),
            ("vocabulary", f"{shape.vocab_size:,} tokens"),
            (
                "parameters",
                f"{lm.num_parameters:,}, {size(memory)} as {str(weight.dtype).removeprefix('torch.')}",
            ),
        ),
    )


def _count(lm: LM) -> str:
    count = lm.num_parameters
    for scale, word in ((1e9, "billion"), (1e6, "million"), (1e3, "thousand")):
        if count >= scale:
            return f"{count / scale:.3g} {word}"
    return str(count)


def _generator() -> str:
    import nbllm

    return f"nbllm {nbllm.__version__}"
