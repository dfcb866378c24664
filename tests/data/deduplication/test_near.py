"""Near-duplicates: against brute force, the same for any order, measured, and the faults that others have had."""

from __future__ import annotations

import collections
import random

import numpy as np
import pyarrow as pa
import pytest

from nbllm.core.errors import UserError
from nbllm.data.arrow_text import Texts
from nbllm.data.deduplication.near import NearDuplicates

from .conftest import decide, edited, generated


def shingle_set(text):
    words = text.split()
    return {tuple(words[i : i + 5]) for i in range(max(1, len(words) - 4))}


def brute_force(documents, threshold):
    """All pairs of documents that reach the threshold: {(earlier, later): similarity}."""
    sets = [shingle_set(text) for text in documents]
    places = collections.defaultdict(list)
    pairs = {}
    for later, shingles in enumerate(sets):
        shared = collections.Counter(other for shingle in shingles for other in places[shingle])
        for other, count in shared.items():
            similarity = count / (len(shingles) + len(sets[other]) - count)
            if similarity >= threshold:
                pairs[other, later] = similarity
        for shingle in shingles:
            places[shingle].append(later)
    return pairs


def first_stays(pairs, count):
    """Who goes, whom each repeats, how alike they are: the first by brute force."""
    earlier = collections.defaultdict(list)
    for (one, other), similarity in pairs.items():
        earlier[other].append((one, similarity))
    removed = {}
    for document in range(count):
        staying = [pair for pair in sorted(earlier[document]) if pair[0] not in removed]
        if staying:
            removed[document] = staying[0]
    return removed


def report_of(decisions):
    return NearDuplicates.report(decisions.schema.metadata)


def as_dict(decisions):
    return {
        row["id"]: (row["partner"], pytest.approx(row["jaccard"], abs=1e-12)) for row in decisions.to_pylist()
    }


@pytest.mark.parametrize("threshold", [0.5, 0.8, 1.0])
def test_the_decisions_equal_brute_force(corpus, threshold, tmp_path):
    pairs = brute_force(corpus, threshold)
    step = NearDuplicates(threshold=threshold, recall=0.99999)
    decisions = decide(step, corpus, tmp_path)
    assert len(pairs) > 400
    assert as_dict(decisions) == first_stays(pairs, len(corpus))
    report = report_of(decisions)
    assert report.recall.value == (1 if threshold < 1 else None)  # copies are not sampled
    assert report.precision.value == 1


def test_the_measured_recall_is_the_true_one(corpus, tmp_path):
    """A setting that misses some: the sample of all documents says how many, as brute force does."""
    pairs = brute_force(corpus, 0.6)
    step = NearDuplicates(threshold=0.6, bands=10, rows=5, sample=10_000)
    report = report_of(decide(step, corpus, tmp_path))
    low, high = report.recall.interval
    assert low < report.recall.value < min(high, 1)
    neighbours = collections.Counter(document for pair in pairs for document in pair)
    copies = {later for (_, later), similarity in pairs.items() if similarity == 1}
    having = {d for pair in pairs for d in pair if not set(pair) & copies}
    assert report.recall.trials == pytest.approx(len(having), rel=0.01) and len(neighbours) >= len(having)


def test_results_do_not_depend_on_batches_or_their_order(corpus, tmp_path):
    step = NearDuplicates(threshold=0.7)
    ids = np.random.default_rng(0).permutation(10**6)[: len(corpus)]
    expected = decide(step, corpus, tmp_path / "1", ids=ids)
    assert expected.num_rows > 500
    for name, order in (("2", [2, 0, 1]), ("3", [1, 2, 0])):
        assert decide(step, corpus, tmp_path / name, ids=ids, batches=3, order=order).equals(
            expected, check_metadata=True
        )


def test_edited_documents_are_found_at_14_bands_of_8_rows(tmp_path):
    """1,500 edits of mean similarity .93: at least 99% are found."""
    rng = random.Random(1)
    documents, similarities = [], []
    originals = generated(1500, seed=2, repeats=0, shortest=150, longest=250)
    for text in originals:
        changed = " ".join(edited(text.split(), rng.choice([1, 1, 1, 2]), rng))
        one, other = shingle_set(text), shingle_set(changed)
        similarities.append(len(one & other) / len(one | other))
        documents += [text, changed]
    assert np.mean(similarities) == pytest.approx(0.93, abs=0.02)
    alike = {2 * i + 1 for i, similarity in enumerate(similarities) if similarity >= 0.8}
    decisions = decide(NearDuplicates(threshold=0.8, bands=14, rows=8), documents, tmp_path)
    found = set(decisions["id"].to_pylist())
    assert found <= alike
    assert len(found) >= 0.99 * 1500


@pytest.mark.parametrize(
    ("documents", "staying"),
    [
        (["x y z"] * 3 + ["y q r"], [0, 3]),  # text-dedup#129: the first of each
        (["cat", "dog", "cat"], [0, 1]),  # DataFlow#526: shorter than a shingle
        (["", "", None, None, "!?", "!?"], [0, 1, 2, 3, 4, 5]),  # no words: nothing is repeated
        (["Cafe\u0301 au lait", "CAF\u00c9, au lait!"], [0]),  # DataFlow#515: normal form; case, punctuation
    ],
)
def test_the_first_stays(documents, staying, tmp_path):
    removed = decide(NearDuplicates(), documents, tmp_path)["id"].to_pylist()
    assert [i for i in range(len(documents)) if i not in removed] == staying


def test_chinese_sentences_that_differ_in_two_characters(tmp_path):
    """DataFlow#515: one "word" each, bigram similarity .80, found at .75."""
    sentence = "今天天气很好我们一起去公园散步然后吃饭"
    other = sentence[:-2] + "回家"
    assert len(sentence) == 19
    decisions = decide(NearDuplicates(threshold=0.75, recall=0.999), [sentence, other], tmp_path)
    assert decisions.to_pylist() == [{"id": 1, "partner": 0, "jaccard": 0.8}]


def test_a_chain_takes_along_only_what_is_like_one_that_stays(tmp_path):
    """A ~ B ~ C, but A and C are unlike: C stays, for nothing that stays is like it."""
    words = [f"w{i}" for i in range(60)]
    documents = [" ".join(words[i : i + 40]) for i in (0, 4, 8)]
    decisions = decide(NearDuplicates(threshold=0.75, recall=0.9999), documents, tmp_path)
    assert decisions["id"].to_pylist() == [1] and decisions["partner"].to_pylist() == [0]


def test_copies_cost_one_comparison_each(tmp_path):
    """Also those of a document that is joined with another already."""
    words = [f"w{i}" for i in range(60)]
    documents = [" ".join(words)] + [" ".join(words[:-1])] * 3000
    report = report_of(decide(NearDuplicates(), documents, tmp_path))
    assert (report.removed, report.compared, report.left_out) == (3000, 3000, 0)


def test_useless_settings_are_refused_with_the_curve():
    """datatrove#107: which number is bands and which rows."""
    with pytest.raises(UserError, match=r"13 bands of 60 rows find only 2e-05(.|\n)*0\.9 0\.023"):
        NearDuplicates(threshold=0.8, bands=13, rows=60)
    assert NearDuplicates(threshold=0.8, bands=60, rows=13).setting.probability(0.8) == pytest.approx(
        0.966, abs=5e-4
    )


@pytest.mark.parametrize(
    "settings",
    [
        {"threshold": 0},
        {"threshold": 1.2},
        {"bands": 14},
        {"bands": 14, "rows": 8, "recall": 0.99},
        {"recall": 1.0},
        {"sample": -1},
    ],
)
def test_settings_that_make_no_sense_are_refused(settings):
    with pytest.raises(UserError):
        NearDuplicates(**settings)


def test_edits_name_the_partner(corpus, tmp_path):
    step = NearDuplicates()
    decisions = decide(step, corpus, tmp_path)
    ids = np.arange(1000, 1100)
    part = decisions.filter(pa.array([1000 <= i < 1100 for i in decisions["id"].to_pylist()]))
    edits = step.apply(Texts.of(pa.array(corpus[1000:1100])), ids, part)
    assert edits.document.tolist() == [i - 1000 for i in part["id"].to_pylist()]
    assert edits.partner.tolist() == part["partner"].to_pylist()
    assert edits.jaccard.tolist() == edits.value.tolist() == part["jaccard"].to_pylist()


def test_no_documents(tmp_path):
    decisions = decide(NearDuplicates(), [], tmp_path)
    assert decisions.num_rows == 0
    assert "no such document" in report_of(decisions)._repr_html_()


def test_the_report_shows_curve_and_measures(corpus, tmp_path):
    report = report_of(decide(NearDuplicates(bands=14, rows=8), corpus[:500], tmp_path))
    html = report._repr_html_()
    assert "<svg" in html and "14 bands of 8 rows" in html and "95% interval" in html
    assert "recall, measured" in str(report)
