"""Text that is made to be slow, and the steps in a pipeline."""

import pyarrow as pa
import pytest

import nbllm as nb
from nbllm.data.arrow_text import Texts
from nbllm.data.pipeline.step import Editor
from nbllm.data.quality.presets import PRESETS, quality

SIZE = 300_000
BAIT = (
    "a",
    "a ",
    "\n",
    "a\n",
    ".",
    "a.",
    "[",
    "[1",
    "#",
    " ",
    "\u0301",
    "中",
    "lorem ipsu",
    "javascrip",
    "\xa0\n",
)
STEPS = {
    f"{step.name}-{getattr(step, 'published', 'paper')}": step for name in PRESETS for step in quality(name)
}


@pytest.mark.parametrize("step", STEPS.values(), ids=STEPS)
def test_long_runs_get_a_verdict(step):
    texts = Texts.of(pa.array([(bait * SIZE)[:SIZE] for bait in BAIT]))

    signals = step.edits(texts).signals if isinstance(step, Editor) else step.signals(texts)

    assert all(values.size == len(BAIT) for values in signals.values())
    if "gopher/words" in signals:
        words = dict(zip(BAIT, signals["gopher/words"].tolist(), strict=True))
        assert words["中"] == SIZE
        if step.published == "paper":
            assert (words["a"], words["a "], words["\n"], words["a\n"]) == (1, SIZE // 2, 0, SIZE // 2)
    if "gopher/top_2_gram" in signals and step.published == "paper":
        assert signals["gopher/top_2_gram"][1] == signals["gopher/duplicate_lines"][3] + 2 / SIZE == 1


def test_all_steps_run_in_a_pipeline():
    """Every document is kept by all, or dropped by one of them, with the rule in the ledger."""
    pages = [text[:3000] for text in nb.data.load("pydocs")["text"][:30]]
    code = [text[:3000] for text in nb.data.load("pystdlib")["text"][:30]]
    steps = [
        nb.data.Language(),
        *quality("fineweb", min_words=10),
        nb.data.Classified(classifier=nb.data.train_classifier(pages, code, buckets=1 << 10)),
        nb.data.NgramPerplexity(model=nb.data.train_ngram_model(pages), max_perplexity=10_000),
        nb.data.ImportanceResampling(weights=nb.data.importance_weights(pages, code), share=0.5),
        *quality("refinedweb")[-1:],
    ]

    clean = nb.data.prepare([*pages, *code, "too short", "中文"], steps)

    ledger = clean.ledger
    dropped = ledger[ledger["kind"] == "document"]
    names = {step.name for step in steps}
    assert set(ledger["step"]) <= names
    assert {"gopher", "importance-resampling"} <= set(dropped["step"])
    assert dropped["id"].nunique() + len(clean) == len(pages) + len(code) + 2
    lines = ledger[(ledger["step"] == "c4") & (ledger["kind"] == "line")]
    assert len(lines)
