"""C4's rules and RefinedWeb's corrections of lines: against plain Python, and C4's against datatrove's filter."""

import numpy as np
import pyarrow as pa
import pytest

from nbllm.data.arrow_text import Texts
from nbllm.data.quality.c4 import C4
from nbllm.data.quality.refinedweb import RefinedWebLines
from tests.data.quality import reference


def texts_of(*texts):
    return Texts.of(pa.array(texts, pa.binary() if isinstance(texts[0], bytes) else pa.string()))


def edited(step, texts):
    """Return each text with the edits applied, which must be in order and within the document."""
    edits = step.edits(texts)
    places = list(zip(edits.document.tolist(), edits.start.tolist(), edits.stop.tolist(), strict=True))
    assert places == sorted(places)
    by_document = {}
    for document, start, stop in places:
        by_document.setdefault(document, []).append((start, stop))
    results = []
    for document in range(texts.num_documents):
        raw, read, kept = texts[document], 0, b""
        for start, stop in by_document.get(document, ()):
            assert read <= start < stop <= len(raw)
            kept += raw[read:start]
            read = stop
        results.append((kept + raw[read:]).decode(errors="replace"))
    return results, edits.signals


def trimmed_lines(text):
    return [line.strip() for line in text.splitlines()]


@pytest.mark.parametrize("end", [True, False])
@pytest.mark.parametrize("published", ["paper", "code"])
def test_c4_equals_plain_python_on_ten_thousand_documents(published, end, many, many_texts):
    results, signals = edited(C4(published=published, end_punctuation=end), many_texts)

    expected = [reference.c4(text, published == "code", end) for text in many]
    for result, (lines, _), text in zip(results, expected, many, strict=True):
        assert trimmed_lines(result) == lines, text
    for name, values in signals.items():
        np.testing.assert_array_equal(values, [counts[name] for _, counts in expected], err_msg=name)


def test_refinedweb_equals_plain_python_on_ten_thousand_documents(many, many_texts):
    results, signals = edited(RefinedWebLines(), many_texts)

    expected = [reference.refinedweb(text) for text in many]
    for result, (lines, _), text in zip(results, expected, many, strict=True):
        assert list(filter(None, trimmed_lines(result))) == list(filter(None, map(str.strip, lines))), text
    np.testing.assert_array_equal(signals["refinedweb/removed_words"], [share for _, share in expected])


@pytest.mark.parametrize("end", [True, False])
def test_c4s_code_decides_as_datatrove(end, many, many_texts, monkeypatch):
    """With our sentences, since its come from spaCy, it keeps the same pages with the same lines."""
    from datatrove.data import Document
    from datatrove.pipeline.filters import c4_filters

    monkeypatch.setattr(c4_filters, "split_into_sentences", lambda text, language: reference.sentences(text))
    theirs = c4_filters.C4QualityFilter(filter_no_terminal_punct=end)
    step = C4(published="code", end_punctuation=end)

    results, signals = edited(step, many_texts)
    rules = [rule for rule in step.rules if rule.signal]
    kept = ~np.any([rule.broken(signals[rule.signal]) for rule in rules], axis=0)

    for text, result, keep in zip(many, results, kept, strict=True):
        document = Document(text=text, id="0")
        assert (theirs.filter(document) is True) == keep, text
        if keep:
            assert list(filter(None, trimmed_lines(result))) == list(
                filter(None, trimmed_lines(document.text))
            ), text
    assert 0.02 < kept.mean() < 0.9


LINE = "This is a line of seven words"


@pytest.mark.parametrize(
    ("line", "paper", "code"),
    [
        (f"{LINE}.", True, True),
        (f"{LINE}", False, False),
        (f"{LINE}。", True, False),
        (f"{LINE}”", True, False),
        (f"{LINE}...", True, False),
        (f"{LINE}. [1]", True, False),
        (f"{LINE}.[citation needed]", True, True),
        ("Only four words here.", False, True),
        (f"{LINE} {'x' * 1001}.", True, False),
        (f"{LINE} of JavaScript.", False, False),
        (f"{LINE} and the Privacy Policy.", False, False),
        ("这是一个句子。", True, False),
    ],
)
def test_which_lines_c4_keeps(line, paper, code):
    for published, kept in (("paper", paper), ("code", code)):
        (result,), _ = edited(C4(published=published), texts_of(line))
        assert (result != "") == kept, published


def test_text_without_braces_stays_and_with_one_goes():
    text = "\n".join([f"{LINE}. It goes on. And on."] * 3)
    step = C4()

    for page, kept in (
        (text, True),
        (text + "\n{", False),
        (text + "\nLorem Ipsum", False),
        (text[:40], False),
    ):
        signals = step.edits(texts_of(page)).signals
        broken = [rule.name for rule in step.rules if rule.signal and rule.broken(signals[rule.signal])[0]]
        assert (broken == []) == kept, broken


@pytest.mark.parametrize(
    ("line", "result"),
    [
        ("THIS IS LOUD and not", ""),
        ("this is Quiet AND not", "this is Quiet AND not"),
        ("12 345", ""),
        ("12,345 apples", "12,345 apples"),
        ("1.2K likes!", ""),
        ("3 Likes", ""),
        ("3 likes of this", "3 likes of this"),
        ("Home", ""),
        ("Sign-in to see this", " to see this"),
        ("A story about birds Read more...", "A story about birds "),
        ("there are 3 items in cart now", "there are 3  now"),
        (
            "a line of more than ten words that says items in cart",
            "a line of more than ten words that says items in cart",
        ),
        ("", ""),
    ],
)
def test_which_lines_refinedweb_corrects(line, result):
    (found,), _ = edited(RefinedWebLines(), texts_of(line))

    assert found == result


@pytest.mark.parametrize("step", [C4(), C4(published="code"), RefinedWebLines()])
def test_bytes_that_are_not_utf8_and_nulls_get_a_verdict(step):
    rng = np.random.default_rng(0)
    pieces = [bytes(rng.integers(0, 256, 60, np.uint8)) + b" b c d e f.\n\xff[1]\xe2" for _ in range(100)]

    broken, signals = edited(step, texts_of(*pieces))
    repaired, repaired_signals = edited(step, texts_of(*(piece.decode(errors="replace") for piece in pieces)))
    assert broken == repaired
    for name in signals:
        np.testing.assert_array_equal(signals[name], repaired_signals[name])

    nothing = step.edits(Texts.of(pa.array([None, "", "…", None], pa.string())))
    assert set(nothing.document.tolist()) <= {2}
    assert all(values.size == 4 for values in nothing.signals.values())
