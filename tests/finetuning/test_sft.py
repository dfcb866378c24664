"""Supervised fine-tuning: layouts, masks, losses against transformers, runs that are replayed and resumed."""

import copy

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

import nbllm as nb
from nbllm.core.errors import DataError, UserError
from nbllm.data.sample_store import SampleStore
from nbllm.finetuning import prepare, read_example, show
from nbllm.finetuning.tokens import tokenize
from nbllm.inference.chat_templates import use_template
from nbllm.objectives import OBJECTIVES
from nbllm.objectives.isolation import seen_of
from tests.finetuning.killing import kill_and_finish

TURNS = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "What is it?"},
    {"role": "assistant", "content": "A list."},
    {"role": "user", "content": "Really <|im_end|> so?"},
    {"role": "assistant", "content": "Yes, <b>a list</b>."},
]
PAIR = [{"role": "user", "content": "What?\n\nThis"}, {"role": "assistant", "content": "That"}]


def test_what_is_trained_is_what_transformers_marks(tokenizer):
    """Its `{% generation %}` marks say the same as the prefixes that are rendered here."""
    clean = [{**turn, "content": turn["content"].replace("<|im_end|>", "-")} for turn in TURNS]
    theirs = tokenizer.apply_chat_template(
        clean, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
    )
    ours = tokenize(tokenizer, read_example(clean))
    assert ours.tokens.tolist() == theirs["input_ids"]
    assert ours.trained.astype(int).tolist() == theirs["assistant_masks"]
    assert 0 < ours.trained.sum() < len(ours.trained)


def test_last_answer_and_everything(tokenizer):
    everything, answers, last = (
        tokenize(tokenizer, read_example(TURNS), train_on=how).trained
        for how in ("everything", "assistant", "answer")
    )
    assert everything.all()
    assert 0 < last.sum() < answers.sum() < len(everything)
    assert not last[: np.flatnonzero(last)[0]].any() and (answers | ~last).all()


def test_a_message_cannot_end_its_turn(tokenizer):
    made = tokenize(tokenizer, read_example(TURNS))
    assert (made.tokens == tokenizer.convert_tokens_to_ids("<|im_end|>")).sum() == len(TURNS)


def test_without_a_template_roles_are_words(tokenizer, lm):
    plain = nb.data.train_tokenizer(nb.data.load("pydocs").select(range(2)), vocab_size=300)
    made = tokenize(plain, read_example(PAIR))
    assert plain.decode(made.tokens[made.trained]) == " That\n"


def test_a_token_over_the_beginning_of_an_answer_belongs_to_it():
    """ "Answer: " ends with a token of its own; in "Answer: hi" the space is part of the answer's first token."""
    tokenizer = nb.data.train_tokenizer(["Answer: hi"] * 50, vocab_size=280)
    made = tokenize(tokenizer, read_example({"prompt": "Answer: ", "completion": "hi"}))
    texts = [tokenizer.decode([token]) for token in made.tokens]
    trained = [text for text, counts in zip(texts, made.trained, strict=True) if counts]
    assert trained == [" hi", tokenizer.eos_token]


def test_a_real_end_is_learnt_and_padding_is_not(tokenizer):
    prepared = prepare([{"prompt": "a", "completion": "b"}], tokenizer, length=12)
    targets, examples = (prepared.store.columns[name][0] for name in ("targets", "examples"))
    assert targets[targets >= 0][-1] == tokenizer.eos_token_id
    assert (targets[examples < 0] == -100).all() and (examples < 0).any()


def test_a_template_that_does_not_say_where_answers_are(tokenizer):
    odd = copy.deepcopy(tokenizer)
    odd.chat_template = "{{ messages | length }}" + tokenizer.chat_template
    with pytest.raises(DataError, match="otherwise than the whole"):
        tokenize(odd, read_example(TURNS))
    odd.chat_template = "{{ raise_exception('never') }}"
    with pytest.raises(DataError, match="cannot be rendered"):
        tokenize(odd, read_example(TURNS))


def test_what_is_left_out_and_cut_is_counted(tokenizer):
    long = {"prompt": "a", "completion": "word " * 60}
    no_answer = {"prompt": "word " * 60, "completion": "late"}
    prepared = prepare([PAIR, long, no_answer, {"messages": []}, ""], tokenizer, length=40)
    assert prepared.num_examples == 2 and prepared.truncated == ("1", "2")
    assert sum(map(len, prepared.left_out.values())) == 3
    assert prepared.left_out["no token to be trained within 40 tokens"] == ("2",)
    assert all(reason in repr(prepared) for reason in prepared.left_out)
    assert "2 (example 1, 2) cut at 40 tokens" in repr(prepared)
    with pytest.raises(DataError, match="nothing to train on"):
        prepare([no_answer], tokenizer, length=40)
    with pytest.raises(DataError, match="nothing to train on"):
        prepare([], tokenizer, length=40)
    with pytest.raises(UserError, match="train_on"):
        prepare([PAIR], tokenizer, length=40, train_on="all")


@pytest.mark.parametrize("pack", [True, False])
def test_the_loss_is_transformers(lm, tokenizer, tmp_path, pack):
    """Summed over packed rows it is the sum of the examples' own losses, computed by transformers."""
    chats = [PAIR, {"prompt": "It", "completion": " is a list."}, "Some text."]
    store = prepare(chats, tokenizer, length=90, pack=pack).store
    assert store.num_rows == (1 if pack else 3)
    objective = OBJECTIVES["sft"].for_tokenizer(tokenizer)
    batch = objective.batch(store.take(list(range(store.num_rows))), np.random.default_rng(0))
    assert ("documents" in batch) == pack
    loss, count = objective.loss(lm.model, batch)
    lm.save(tmp_path / "model")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "model").eval()
    total = number = 0
    for chat in chats:
        made = tokenize(tokenizer, read_example(chat))
        labels = torch.from_numpy(np.where(made.trained, made.tokens, -100))[None]
        counted = int((labels[:, 1:] != -100).sum())
        total += float(theirs(torch.from_numpy(made.tokens)[None], labels=labels).loss.detach()) * counted
        number += counted
    assert count == number
    assert abs(float(loss.detach()) / count - total / number) < 1e-5


def test_what_is_trained_is_shown(lm):
    shown = show(TURNS, lm)
    assert "[[A list.<|im_end|>]]" in repr(shown) and "[[Be brief" not in repr(shown)
    html = shown._repr_html_()
    assert "<|im_start|>user\nWhat is it?<|im_end|>" in repr(shown)
    assert "<mark>" in html and "<b>" not in html


SETTINGS = {
    "steps": 8, "batch_size": 2, "sequence_length": 64, "checkpoint_interval": 4, "sample_interval": 0,
    "precision": "float32", "num_threads": 1, "lr": 1e-2, "validation_interval": 4,
}  # fmt: skip


def test_a_run_learns_is_replayed_and_resumed(lm, tmp_path, capsys):
    chats = [
        [{"role": "user", "content": f"Say {word}"}, {"role": "assistant", "content": word * 2}]
        for word in ("one", "two", "six", "ten", "red", "bad")
    ]
    base = {name: value.clone() for name, value in lm.model.state_dict().items()}
    run = nb.finetune(
        lm, chats, validation=chats[:2], adapter=nb.LoRA(rank=4, targets=("query", "value", "up", "down")),
        folder=tmp_path, name="sft", **SETTINGS,
    )  # fmt: skip
    run.wait(progress=False)
    assert "6 examples in" in capsys.readouterr().out
    assert run.state == "finished"
    _, losses = run.history("evaluation.loss")
    assert losses[-1] < losses[0]
    assert all(torch.equal(lm.model.state_dict()[name], value) for name, value in base.items())
    assert nb.replay(run, progress=False).identical

    fork = run.fork("again", step=4)
    fork.wait(progress=False)
    one, two = nb.load(run), nb.load(fork)
    ids = torch.tensor([[3, 7, 5]])
    assert torch.equal(
        one.model(ids), two.model(ids)
    )  # the same rows in the same order from the checkpoint on


@pytest.mark.slow
def test_a_run_that_is_killed_goes_on_as_if_it_had_not_been(lm, tmp_path):
    chats = [
        [{"role": "user", "content": f"Say {word}"}, {"role": "assistant", "content": word * 2}]
        for word in ("one", "two", "six", "ten", "red")
    ]
    settings = {**SETTINGS, "steps": 200, "checkpoint_interval": 50, "validation_interval": 0}
    run = nb.finetune(
        lm, chats, adapter=nb.LoRA(rank=2), folder=tmp_path, name="killed", where="process", **settings
    )
    kill_and_finish(run, step=60)


def test_bad_calls(lm, tmp_path):
    for wrong, said in (
        ({"method": "sftt"}, "method"),
        ({"objective": "causal_lm"}, "settled"),
        ({"sequence_length": 1000}, "positions"),
        ({"train_on": "nothing"}, "train_on"),
        ({"stepps": 3}, "stepps"),
    ):
        with pytest.raises(UserError, match=said):
            nb.finetune(lm, [PAIR], adapter=nb.LoRA(), folder=tmp_path, **{"steps": 2, **wrong})
    assert lm.adapters == ()


def test_damaged_rows_are_refused(tokenizer):
    store = prepare([PAIR, "damaged"], tokenizer, length=33).store
    (store.path / "targets.npy").write_bytes(b"no array")
    with pytest.raises(DataError):
        SampleStore.open(store.path)
    assert len(prepare([PAIR, "damaged"], tokenizer, length=33).store) == 2  # written again


def test_packed_examples_count_positions_anew_and_predict_only_their_own(lm, tokenizer):
    """Lengths 3 and 5 packed: positions 0-2 and 0-4, 6 targets, and the loss of the two alone (trl#1230)."""
    rows = {
        "inputs": np.array([[5, 6, 7, 8, 9, 10, 11, 12]]),
        "targets": np.array([[6, 7, -100, 9, 10, 11, 12, -100]]),
        "examples": np.array([[0, 0, 0, 1, 1, 1, 1, 1]]),
    }
    objective = OBJECTIVES["sft"].for_tokenizer(tokenizer)
    batch = objective.batch(rows, np.random.default_rng(0))
    assert seen_of(batch, causal=True)["positions"].tolist() == [[0, 1, 2, 0, 1, 2, 3, 4]]
    loss, count = objective.loss(lm.model, batch)
    assert count == 6
    alone = [
        objective.loss(
            lm.model,
            objective.batch(
                {name: column[:, part] for name, column in rows.items()}, np.random.default_rng(0)
            ),
        )[0]
        for part in (slice(0, 3), slice(3, 8))
    ]
    assert float(loss.detach()) == pytest.approx(float(sum(alone).detach()), abs=1e-5)


def test_the_beginning_of_text_is_there_once(tokenizer):
    """Template and tokenizer both add it (trl#1400)."""
    from tokenizers.processors import TemplateProcessing

    twice = copy.deepcopy(tokenizer)
    twice.add_special_tokens({"bos_token": "<s>"})
    begin = twice.bos_token_id
    twice.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", begin)]
    )
    assert twice("a")["input_ids"][0] == begin
    twice.chat_template = "{{ bos_token }}" + tokenizer.chat_template
    for value in (PAIR, {"prompt": "It", "completion": " is."}):
        tokens = tokenize(twice, read_example(value)).tokens.tolist()
        assert tokens[0] == begin and tokens.count(begin) == 1
    twice.chat_template = None
    tokens = tokenize(twice, read_example(PAIR)).tokens.tolist()
    assert tokens[0] == begin and tokens.count(begin) == 1


def test_an_answer_that_begins_a_conversation_counts(tokenizer):
    """A span that begins at the first token is trained (transformers#34172)."""
    bare = copy.deepcopy(tokenizer)
    bare.chat_template = "{% for message in messages %}{{ message.content }}{% endfor %}"
    made = tokenize(bare, read_example([{"role": "assistant", "content": "It is"}]))
    assert made.trained.all() and len(made.trained)


def test_a_template_by_name_is_saved_with_the_model(lm, tokenizer, tmp_path):
    own = copy.deepcopy(tokenizer)
    lm.tokenizer = own
    run = nb.finetune(
        lm, [PAIR], template="alpaca", folder=tmp_path, **{**SETTINGS, "steps": 1, "sample_interval": 1}
    )
    run.wait(progress=False)
    # Samples answer the questions of examples, as the model is asked them.
    assert run.events("sample")[0]["prompt"] == "### Instruction:\nWhat?\n\nThis\n\n### Response:\n"
    assert "### Response:\n[[That<|endoftext|>]]" in repr(show(PAIR, lm))
    assert nb.load(run).tokenizer.chat_template == own.chat_template
    use_template(own, "plain")
    assert own.chat_template is None
    use_template(own, "chatml")
    assert "[[That<|im_end|>]]" in repr(show(PAIR, lm))
    bare = nb.data.train_tokenizer(["a text"] * 9, vocab_size=270)
    with pytest.raises(UserError, match="lacks '<|im_start|>'"):
        use_template(bare, "chatml")
    with pytest.raises(UserError, match="template"):
        nb.finetune(lm, [PAIR], template="chatmi", folder=tmp_path)
