"""What a plan is said to mean, in text, as HTML and as a picture."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest

import nbllm as nb
from nbllm.core.errors import UserError
from nbllm.distributed import Plan
from nbllm.distributed.explain import PlanReport
from nbllm.distributed.step_time import Hardware
from nbllm.models import ModelConfig, build, make_config

EVIL = ModelConfig(family="<img src=x>", vocab_size=512, hidden_size=64, num_layers=2, num_heads=4)


def test_a_plan_is_explained_for_a_preset_without_the_hardware():
    report = Plan(zero=3, tensor=2).explain("llama-7b", devices=8, batch_size=2, accumulation=4)
    assert isinstance(report, PlanReport) and report.plan == Plan(data=4, zero=3, tensor=2)
    text = str(report)
    assert "6,738,415,616 parameters" in text and "32,768 tokens" in text
    for part in ("parameters", "adamw states", "gradients", "activations", "gathered"):
        assert part in text
    assert "all-gather" in text and "reduce-scatter" in text and "Estimated time" in text
    assert "float32 masters" in str(Plan().explain("gpt2", 2))
    largest = report.largest
    total = re.search(r"^total +([\d.]+) +([\d.]+) +([\d.]+)$", text, flags=re.MULTILINE)
    assert [float(each) for each in total.groups()] == pytest.approx(
        [largest.at(moment) / 1e9 for moment in ("between steps", "end of forward", "end of backward")],
        abs=0.01,
    )


def test_columns_of_the_text_are_aligned_right():
    lines = str(Plan(pipeline=2).explain("gpt2", 8, accumulation=8)).splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("part "))
    assert len({len(line) for line in lines[start : start + 6]}) == 1


@pytest.mark.parametrize(
    ("settings", "accumulation", "bubble"),
    [
        ({"pipeline": 4}, 8, 27.3), ({"pipeline": 4, "schedule": "interleaved"}, 8, 15.8),
        ({"pipeline": 4, "schedule": "gpipe"}, 8, 27.3),
    ],
)  # fmt: skip
def test_the_bubble_is_that_of_the_literature(settings, accumulation, bubble):
    report = Plan(**settings).explain("gpt2", 4, accumulation=accumulation)
    assert 100 * report.bubble == pytest.approx(bubble, abs=0.05)
    assert f"{bubble}% of the time" in str(report)
    waiting = report.time.waiting / (report.time.waiting + report.time.computing)
    assert waiting == pytest.approx(report.bubble)


def test_the_operations_of_a_step_are_those_of_the_model_and_those_computed_again():
    config = make_config("gpt2")
    plain = Plan(data=1).explain(config, 1, accumulation=2)
    assert plain.flops == 2 * config.costs().flops_per_step
    assert plain.flops / plain.tokens == 854_438_400
    split = Plan(data=2, tensor=2).explain(config, 4, accumulation=2)
    assert split.flops == plain.flops / 2
    blocks = sum(part.flops for part in config.costs().parts if part.name != "head")
    again = Plan(data=1, activation_checkpointing="full").explain(config, 1, accumulation=2)
    assert again.flops - plain.flops == pytest.approx(blocks * again.tokens)


def test_what_is_offloaded_is_said_and_not_counted():
    plain = Plan(zero=3).explain("llama-7b", 8)
    offloaded = Plan(zero=3, offload="cpu").explain("llama-7b", 8)
    assert offloaded.largest.at("between steps") == 0
    assert offloaded.largest.offloaded == pytest.approx(16 / 8 * 6_738_415_616)
    late = "end of backward"
    assert offloaded.largest.at(late) == pytest.approx(plain.largest.at(late) - offloaded.largest.offloaded)
    assert "13.5 GB in the CPU's memory" in str(offloaded)


def test_every_rank_beyond_the_machine_goes_over_the_network():
    fast = Plan(data=8).explain("gpt2", 8)
    slow = Plan(data=8).explain("gpt2", 8, hardware=Hardware(devices_per_machine=4))
    assert slow.time.sending > fast.time.sending
    assert "4 devices of a machine" in str(slow)


@pytest.mark.parametrize(
    ("plan", "devices", "lm", "match"),
    [
        (Plan(tensor=3), 8, "gpt2", "multiple of 3"),
        (Plan(tensor=5), 5, "gpt2", "12 attention heads cannot be split evenly over 5"),
        (Plan(pipeline=13, schedule="gpipe"), 13, "gpt2", "this network has 12"),
        (Plan(), 2, 3, "not for int"),
        (Plan(), 2, "gpt3", "no model family or preset"),
    ],
)
def test_a_plan_that_cannot_work_is_refused_with_reason_and_hint(plan, devices, lm, match):
    with pytest.raises(UserError, match=match) as raised:
        plan.explain(lm, devices)
    assert raised.value.hint


def test_unknown_arguments_and_too_long_sequences_are_refused():
    with pytest.raises(UserError, match="no argument 'batchsize'"):
        Plan().explain("gpt2", 2, batchsize=3)
    with pytest.raises(UserError, match="the model has 1024 positions"):
        Plan().explain("gpt2", 2, sequence_length=2000)


def test_a_network_and_a_configuration_are_explained_alike():
    config = make_config("gpt2", vocab_size=64, hidden_size=32, num_layers=2, num_heads=4)
    assert str(Plan().explain(build(config), 2)) == str(Plan().explain(config, 2))


def test_the_page_is_escaped_and_follows_the_theme():
    html = Plan(zero=3).explain(EVIL, 4)._repr_html_()
    assert "<img" not in html and "&lt;img src=x&gt;" in html
    assert "var(--nbllm-series-1" in html and "<title>" in html


def drawn(plan, devices, lm="gpt2", **work):
    root = ElementTree.fromstring(plan.explain(lm, devices, **work).picture())
    return root, [each.text for each in root.iter("{http://www.w3.org/2000/svg}title")]


def test_the_picture_says_what_each_rank_holds_before_and_during_a_step():
    root, titles = drawn(Plan(zero=3), 4)
    assert any(
        "rank 3, blocks.0 attention: " in title and "while it computes all" in title for title in titles
    )
    texts = [each.text for each in root.iter("{http://www.w3.org/2000/svg}text")]
    assert {"between steps", "while a part computes", "10 blocks alike", "embedding", "head"} <= set(texts)
    held = [int(re.search(r": ([\d,]+) of", t)[1].replace(",", "")) for t in titles if "blocks.0 feed" in t]
    assert sum(held[:4]) == 8 * 768**2 + 5 * 768


def test_the_picture_shows_slices_of_tensor_ranks_and_stages():
    _, titles = drawn(Plan(tensor=2, pipeline=2), 4, accumulation=2)
    assert sum(title.endswith("blocks.0 attention: nothing") for title in titles) == 2
    (held,) = {
        re.search(r": ([\d,]+) of", title)[1] for title in titles if "rank 1, blocks.0 attention" in title
    }
    assert held.replace(",", "") == str((4 * 768**2 + 3 * 768) // 2 + 768)


def test_of_many_ranks_some_are_drawn():
    root, _ = drawn(Plan(), 128)
    assert any("64 ranks more" in (each.text or "") for each in root.iter("{http://www.w3.org/2000/svg}text"))


def test_the_facade_has_it():
    assert nb.suggest_plan.__module__ == "nbllm.distributed.suggest"
