"""The examples of a saved report, browsed in a real browser."""

from __future__ import annotations

import random

import pytest
from playwright.sync_api import Page, expect

from nbllm.core.report import Comparison, Comparisons, Report, Rows, Subject

HOSTILE = '</script><img src=x onerror="window.hacked=1"><script>window.hacked=1</script>\u202egnp'
SUBJECTS = [f"subject {i:02}" for i in range(57)]


def rows(count=200, model="", seed=0, **columns):
    chooser = random.Random(seed)
    answers = [chooser.randrange(4) for _ in range(count)]
    expected = [chooser.randrange(4) for _ in range(count)]
    made = {
        "question": [f"question {i} about {SUBJECTS[i % 57]}" for i in range(count)],
        "subject": [SUBJECTS[i % 57] for i in range(count)],
        "choices": [tuple(f"choice {i}.{k}" for k in range(4)) for i in range(count)],
        "predicted": answers,
        "expected": expected,
        "correct": [float(a == b) for a, b in zip(answers, expected, strict=True)],
        "margin": [chooser.random() * 10 for _ in range(count)],
        **columns,
    }
    subject = Subject(task="mmlu", data="", fingerprint="0")
    return Rows(
        subject=subject, columns=made, num_examples=count, unit="questions", cluster="subject", model=model
    )


def mmlu():
    """A report of MMLU's size: 57 subjects and 14,042 examples, with texts of its length."""
    count, chooser = 14_042, random.Random(0)
    questions = ["".join(chooser.choices("abcdefghij klmnop ", k=350)) for _ in range(count)]
    choices = [tuple("".join(chooser.choices("abcdef ", k=40)) for _ in range(4)) for _ in range(count)]
    logs = [tuple(chooser.gauss(-5, 2) for _ in range(4)) for _ in range(count)]
    return Report("MMLU").add(rows(count, question=questions, choices=choices, log_probabilities=logs))


@pytest.fixture
def open_report(page: Page, tmp_path):
    def open_report(report: Report):
        errors = []
        page.on("pageerror", lambda error: errors.append(error))
        page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        page.goto(report.save(tmp_path / "report.html").as_uri())
        expect(page.locator(".nbllm-examples tbody tr").first).to_be_visible()
        return page, errors

    return open_report


def column(page: Page, name: str) -> list[str]:
    heads = [text.rstrip(" ▴▾") for text in page.locator(".nbllm-examples thead th").all_inner_texts()]
    return page.locator(f".nbllm-examples tbody tr > td:nth-child({heads.index(name) + 1})").all_inner_texts()


def test_one_page_of_rows_is_in_the_document_and_is_turned(open_report):
    page, errors = open_report(Report("r").add(rows()))
    assert page.locator(".nbllm-examples tbody tr").count() == 25
    page.get_by_role("button", name="next").click()
    assert column(page, "#")[0].endswith("26") and page.get_by_text("page 2 of 8").is_visible()
    page.get_by_role("button", name="previous").click()
    assert page.get_by_role("button", name="previous").is_disabled() and not errors


def test_rows_are_sorted_and_filtered(open_report):
    section = rows()
    page, errors = open_report(Report("r").add(section))
    page.locator("thead").get_by_role("button", name="margin").click()
    shown = [float(text) for text in column(page, "margin")]
    assert shown == sorted(shown) and shown[0] == pytest.approx(min(section.columns["margin"]), rel=1e-3)
    page.locator("thead").get_by_role("button", name="margin").click()
    assert page.locator("th[aria-sort=descending]").count() == 1
    assert float(column(page, "margin")[0]) == pytest.approx(max(section.columns["margin"]), rel=1e-3)
    page.get_by_label("Outcome").select_option("wrong")
    wrong = sum(value == 0 for value in section.columns["correct"])
    expect(page.get_by_role("status")).to_have_text(f"{wrong} of 200 questions")
    assert set(column(page, "correct")) == {"0"}
    page.get_by_label("Group").select_option(label="subject 03")
    assert set(column(page, "subject")) == {"subject 03"}
    page.get_by_label("Outcome").select_option("")
    page.get_by_label("Find a text").fill("question 3 about")
    expect(page.get_by_role("status")).to_have_text("1 of 200 questions")
    assert not errors


def test_a_prediction_is_coloured_by_whether_it_is_right_and_marked_for_who_sees_no_colours(open_report):
    section = rows()
    page, _ = open_report(Report("r").add(section))
    for i, text in enumerate(column(page, "predicted")):
        right = section.columns["correct"][i] == 1
        chosen = section.columns["predicted"][i]
        assert text == f"{'✓' if right else '✗'} {chosen}: choice {i}.{chosen}"
    kinds = page.locator("td.good, td.bad").evaluate_all("cells => cells.map((cell) => cell.className)")
    assert kinds == ["good" if value == 1 else "bad" for value in section.columns["correct"][:25]]


def test_a_whole_example_unfolds_with_the_words_that_its_reference_has(open_report):
    predicted, expected = ["a cat sat on the mat"] * 3, ["the cat sat on a mat"] * 3
    section = rows(3, predicted=predicted, expected=expected, choices=[()] * 3)
    page, _ = open_report(Report("r").add(section))
    page.get_by_role("button", name="▸ 2").click()
    words = page.locator("dd .good").all_inner_texts()
    assert words == ["cat", "sat", "on", "mat"]
    assert page.locator("dd .bad").all_inner_texts() == ["a", "the"]
    assert page.get_by_role("button", name="▾ 2").get_attribute("aria-expanded") == "true"


def test_two_models_rows_are_chosen_and_their_differences_found(open_report):
    parts = [rows(model="small"), rows(model="large", predicted=[0] * 200)]
    subject = parts[0].subject
    compared = Comparison(
        name="accuracy", models=("small", "large"), values=(0, 1), num_rows=200, subject=subject, flips=(3, 7)
    )
    page, _ = open_report(Report("r").add(Comparisons(comparisons=(compared,)), *parts))
    page.get_by_label("Which examples").select_option(label="mmlu, large")
    assert set(text.split(":")[0] for text in column(page, "predicted")) <= {"✓ 0", "✗ 0"}
    assert column(page, "question")[3] == "question 3 about subject 03"  # kept once, for both
    page.get_by_label("Outcome").select_option("flips")
    assert [text.split()[-1] for text in column(page, "#")] == ["4", "8"]


def test_hostile_text_is_shown_and_never_run(open_report):
    hostile = rows(
        30,
        question=[HOSTILE] * 30,
        subject=[HOSTILE] * 30,
        predicted=[HOSTILE] * 30,
        expected=[HOSTILE] * 30,
        choices=[(HOSTILE,)] * 30,
        **{HOSTILE: [HOSTILE] * 30},
    )
    page, errors = open_report(Report(HOSTILE).add(hostile))
    page.get_by_role("button", name="▸ 1", exact=True).click()
    expect(page.locator(".nbllm-detail")).to_contain_text("<img src=x onerror=")
    page.get_by_label("Find a text").fill("<img")
    expect(page.get_by_role("status")).to_have_text("30 questions")
    assert page.evaluate("window.hacked") is None and page.locator("img").count() == 0
    assert "\u202e" not in page.locator("main").inner_text() and not errors


def test_the_page_runs_no_script_but_its_own(open_report):
    page, _ = open_report(Report("r").add(rows(30)))
    page.evaluate(
        "() => { const s = document.createElement('script'); s.textContent = 'window.other = 1'; "
        "document.body.append(s); }"
    )
    assert page.evaluate("window.other") is None


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_phone_and_follows_the_theme(open_report, scheme):
    page, _ = open_report(Report("r").add(rows()))
    page.emulate_media(color_scheme=scheme)
    page.set_viewport_size({"width": 390, "height": 844})
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    colour = page.locator(".nbllm-controls input").evaluate("node => getComputedStyle(node).color")
    ground = page.evaluate("getComputedStyle(document.documentElement).backgroundColor")
    assert (colour == "rgb(230, 237, 243)") == (scheme == "dark") and colour != ground


def test_a_whole_mmlu_is_small_enough_and_one_page_of_it_is_drawn(open_report, tmp_path):
    report = mmlu()
    page, errors = open_report(report)
    assert (tmp_path / "report.html").stat().st_size < 15_000_000
    assert page.locator(".nbllm-examples tbody tr").count() == 25 and not errors
    expect(page.get_by_role("status")).to_have_text("14,042 questions")
    page.get_by_label("Find a text").fill(report.rows().columns["question"][9000][:40])
    expect(page.get_by_role("status")).to_have_text("1 of 14,042 questions")
