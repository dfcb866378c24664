"""Which parameters a list of patterns freezes: by our names, transformers', and layers as Python counts them."""

from __future__ import annotations

import random

import pytest
import torch
from transformers import AutoModelForCausalLM

import nbllm as nb
from nbllm.core.errors import RefusedError, UserError
from nbllm.models.network import build_without_weights
from nbllm.opening import load
from nbllm.runs.patterns import NOT
from nbllm.training.freezing import ParameterNames
from nbllm.training.train_state import TrainState

SHAPES = {
    "gpt2": {"num_layers": 4, "hidden_size": 16, "num_heads": 2},
    "llama": {"num_layers": 4, "hidden_size": 16, "num_heads": 2},
    "qwen2": {"num_layers": 4, "hidden_size": 16, "num_heads": 2, "tie_embeddings": False},
    "bert": {"num_layers": 4, "hidden_size": 16, "num_heads": 2},
}


def names_of(family):
    config = nb.models.make_config(family, vocab_size=50, **SHAPES[family])
    names = [name for name, _ in build_without_weights(config).named_parameters()]
    return ParameterNames(names, config)


@pytest.fixture
def names():
    return names_of("llama")


def of_layers(names, *numbers, part=""):
    return {name for name in names.names if name.startswith(tuple(f"blocks.{n}.{part}" for n in numbers))}


@pytest.mark.parametrize(
    ("patterns", "layers"),
    [
        (["layers[-2:]"], [2, 3]),
        (["layers[:1]"], [0]),
        (["blocks[1:3]"], [1, 2]),
        (["layers[-1]"], [3]),
        (["layers[::2]"], [0, 2]),
        (["blocks.0"], [0]),
        (["blocks.0.*"], [0]),
        (["blocks.[01].*"], [0, 1]),
        (["model.layers[-2:]"], [2, 3]),
        (["model.layers.3"], [3]),
        (["layers.3.*"], [3]),
        (["layers[:]", "!layers[1]"], [0, 2, 3]),
        (["blocks.*", "!layers[-2:]", "layers[-1]"], [0, 1, 3]),
    ],
)
def test_layers_are_counted_as_python_counts(names, patterns, layers):
    assert names.frozen(patterns) == of_layers(names, *layers)


def test_parts_of_layers(names):
    assert names.frozen(["layers[1:3].attention"]) == of_layers(names, 1, 2, part="attention.")
    theirs = names.frozen(["layers[1:3].self_attn"])
    assert theirs == names.frozen(["layers[1:3].attention"])


def test_all_but_the_last_two_layers(names):
    assert names.after("freeze", (), ["!layers[-2:]"]) == ("*", "!layers[-2:]")
    assert names.frozen(["*", "!layers[-2:]"]) == set(names.names) - of_layers(names, 2, 3)


def test_a_tied_head_is_the_embedding():
    for name in ("lm_head", "head", "lm_head.weight", "transformer.wte"):
        assert names_of("gpt2").frozen([name]) == {"embedding.weight"}
    assert names_of("qwen2").frozen(["lm_head"]) == {"head.weight"}
    encoder = names_of("bert")
    assert encoder.frozen(["head"]) == {name for name in encoder.names if name.startswith("head.")}


def test_layers_of_an_encoder():
    encoder = names_of("bert")
    assert encoder.frozen(["layers[:2]"]) == of_layers(encoder, 0, 1)
    for pattern in ("bert.encoder.layer[:2]", "encoder.layer[:2]", "layer[:2]"):
        assert encoder.frozen([pattern]) == of_layers(encoder, 0, 1)
    assert encoder.frozen(["bert.embeddings.word_embeddings"]) == {"embedding.weight"}


@pytest.mark.parametrize("family, theirs", [("t5", "block"), ("bart", "layers")])
def test_layers_of_an_encoder_decoder(family, theirs):
    config = nb.models.make_config(
        family, vocab_size=50, num_layers=3, num_decoder_layers=2, hidden_size=16, num_heads=2
    )
    model = build_without_weights(config)
    names = ParameterNames([name for name, _ in model.named_parameters()], config)
    for stack, last in (("encoder", 2), ("decoder", 1)):
        expected = {name for name in names.names if name.startswith(f"{stack}.blocks.{last}.")}
        for layers in ("layers", "blocks", theirs):
            assert names.frozen([f"{stack}.{layers}[-1]"]) == expected
        assert names.frozen([stack]) == {name for name in names.names if name.startswith(f"{stack}.")}
    with pytest.raises(UserError, match=r"does not say of which stack.*\n.*encoder.layers\[...\] or decoder"):
        names.frozen(["layers[0]"])
    with pytest.raises(UserError, match=r"selects no layer.*\n.*The model has 2"):
        names.frozen(["decoder.layers[2]"])
    for name in ("lm_head", "shared" if family == "t5" else "model.shared"):
        assert names.frozen([name]) == {"embedding.weight"}


@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen2"])
def test_every_name_of_transformers_freezes_what_it_holds(family, tokenizer, tmp_path):
    """Checked against transformers' own names of the saved model, and what of ours each loads into."""
    shape = {**SHAPES[family], "num_layers": 2}
    lm = nb.LM.new(family, tokenizer=tokenizer, **shape)
    names = ParameterNames([name for name, _ in lm.model.named_parameters()], lm.config)
    lm.save(tmp_path / "model")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    seen = set()
    for name, parameter in theirs.named_parameters():
        with torch.no_grad():
            parameter.add_(1)
        theirs.save_pretrained(tmp_path / "changed")
        with torch.no_grad():
            parameter.sub_(1)
        lm.tokenizer.save_pretrained(tmp_path / "changed")
        after = dict(load(tmp_path / "changed").model.named_parameters())
        changed = {n for n, p in lm.model.named_parameters() if not torch.allclose(after[n], p, atol=1e-3)}
        assert names.frozen([name]) == changed, name
        seen |= changed
    assert seen == set(names.names)


def test_any_sequence_of_actions_leaves_what_the_actions_say(names):
    """The patterns that are kept freeze what all of them, one after the other, would."""
    rng = random.Random(0)
    pool = [
        "*", "embedding", "embedding.*", "norm", "blocks.*", "blocks.1.*", "layers[-2:]", "layers[:3].attention",
        "*.weight", "*.query.*", "model.embed_tokens", "model.layers.1", "layers.0.mlp", "head", "blocks.?.attention",
    ]  # fmt: skip
    pool = [pattern for pattern in pool if names.named(pattern)]
    for _ in range(300):
        frozen, expected = (), frozenset()
        for _ in range(rng.randrange(1, 8)):
            action = rng.choice(["freeze", "unfreeze"])
            patterns = rng.sample(pool, rng.randrange(1, 4))
            if action == "freeze":
                patterns = [rng.choice(["", "", NOT]) + pattern for pattern in patterns]
            try:
                changed = names.after(action, frozen, patterns)
            except (UserError, RefusedError):
                continue
            if action == "unfreeze":
                expected -= names.frozen(patterns)
            elif patterns[0].startswith(NOT):
                expected = names.frozen(["*", *patterns])
            else:
                for pattern in patterns:
                    named = names.named(pattern)
                    expected = expected - named if pattern.startswith(NOT) else expected | named
            frozen = changed
            assert names.frozen(frozen) == expected, frozen
            assert not frozen or not frozen[0].startswith(NOT)


@pytest.mark.parametrize(
    ("patterns", "message", "hint"),
    [
        (["embeding"], "'embeding' matches no parameter", "embedding.weight"),
        (["!embeding"], "'!embeding' matches no parameter", "embedding.weight"),
        (["layers[4]"], "selects no layer", "layers[0] to layers[3]"),
        (["layers[2:2]"], "matches no parameter", "last two layers"),
        (["layers[--1]"], "selects no layer", "layers[0] to layers[3]"),
        (["layers[::0]"], "selects no layer", "layers[0] to layers[3]"),
        (["layers[1:2:3:4]"], "selects no layer", "layers[0] to layers[3]"),
        ([f"layers[{'9' * 5000}]"], "selects no layer", "layers[0] to layers[3]"),
        (["*"], "nothing would be left to train", "Freeze less"),
        (["model.*", "lm_head.*"], "nothing would be left to train", "Freeze less"),
        (["model.decoder.*"], "matches no parameter", "Parameters are"),
    ],
)
def test_what_names_nothing_is_refused(names, patterns, message, hint):
    for check in (names.check_from_start, lambda patterns: names.after("freeze", (), patterns)):
        with pytest.raises(UserError) as caught:
            check(patterns)
        assert message in caught.value.what
        assert hint in caught.value.hint


def test_only_what_is_frozen_can_be_trained_again(names):
    with pytest.raises(RefusedError, match="Nothing that 'norm' names is frozen: nothing is"):
        names.after("unfreeze", (), ["norm"])
    with pytest.raises(RefusedError, match=r"Nothing that 'norm' names is frozen: 'embedding\.\*'"):
        names.after("unfreeze", ("embedding.*",), ["norm"])


def test_runs_take_patterns_from_the_start_from_a_person_and_from_a_rule(lm, store, config, tmp_path):
    """Frozen from the start, by a person or unfrozen by a rule: just the rest is trained. `lm` has two layers."""
    before = {name: parameter.detach().clone() for name, parameter in lm.model.named_parameters()}

    def moved(run):
        after = load(run.checkpoints[-1].path).model.named_parameters()
        return {name for name, parameter in after if not torch.equal(parameter, before[name])}

    def start(name, **changes):
        return nb.train(lm.copy(), store, folder=tmp_path, name=name, **{**config, **changes})

    last = {name for name in before if name.startswith("blocks.1.")}
    first = start("first", freeze="!layers[-1:]").wait(progress=False)
    assert moved(first) == last
    assert first.config["freeze"] == ["*", "!layers[-1:]"]
    rule = nb.runs.rules.Rule(name="thaw", when="loss > 0", do=nb.rules.unfreeze("model.norm"), limit=1)
    second = start("second", freeze=["!blocks.1"], rules=[rule]).wait(progress=False)
    assert moved(second) == last | {"norm.weight"}
    third = start("third", steps=100_000)
    third.wait(step=2, progress=False).pause()
    with pytest.raises(RefusedError, match="selects no layer"):
        third.freeze("layers[2]")
    third.freeze("!layers[1]")
    third.unfreeze("model.norm.weight")
    third.resume()
    third.wait(step=third.step + 2, progress=False).stop()
    third.wait(progress=False)
    assert TrainState.read(third.checkpoints[-1].path).frozen == ("*", "!layers[1]", "!model.norm.weight")
    assert nb.replay(third, progress=False).identical
    fork = third.fork("fork", steps=third.step + 2).wait(progress=False)
    assert fork.config["freeze"] == ["*", "!layers[1]", "!model.norm.weight"]


def test_a_panel_and_a_report_tell_what_is_frozen(lm, store, config, tmp_path):
    from nbllm.evaluation.run_sections import run_sections
    from nbllm.widgets.card import CardMaker

    run = nb.train(lm, store, folder=tmp_path, name="run", **{**config, "freeze": "!layers[-1]"})
    run.wait(progress=False)
    assert CardMaker(run, 0).card()["frozen"] == ["*", "!layers[-1]"]
    trained = sum(p.numel() for name, p in lm.model.named_parameters() if name.startswith("blocks.1."))
    told = str([section.to_dict() for section in run_sections(run, lm)])
    assert f"{trained:,} of {lm.num_parameters:,} parameters" in told
    assert "frozen: *, !layers[-1]" in told
