"""Documents packed into one window, each alone: loss and gradients are those of one document at a time."""

import math

import numpy as np
import pytest
import torch

import nbllm as nb
from nbllm.core.errors import UserError
from nbllm.distributed.layout import OneProcess
from nbllm.models.network import build
from nbllm.models.presets import make_config
from nbllm.nn.attention_backends.dispatch import BACKENDS
from nbllm.nn.positions import POSITIONS
from nbllm.objectives import CausalLM, FillInTheMiddle, MaskedLM
from nbllm.training.objective import make_objective
from nbllm.training.validation import Validation

END = 7
SHAPE = {"vocab_size": 97, "num_layers": 2, "hidden_size": 32, "num_heads": 2, "max_positions": 32}


def network(family="gpt2", **changes):
    return build(make_config(family, **SHAPE).replace(initializer_range=0.2, **changes), seed=1)


def objective_of(kind=CausalLM, *, begins_next):
    objective = kind()
    objective.isolate(END, begins_next=begins_next)
    return objective


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return {name: each.grad.clone() for name, each in model.named_parameters() if each.grad is not None}


def assert_same_gradients(ours, theirs):
    """Within 1e-5 of the largest: some, such as that of a key's bias, are nothing but rounding."""
    scale = max(float(each.abs().max()) for each in theirs.values())
    for name, expected in theirs.items():
        torch.testing.assert_close(ours[name], expected, rtol=1e-5, atol=1e-5 * scale, msg=name)


def draw(*lengths):
    """Return documents of random tokens, each with the end token."""
    rng = np.random.default_rng(0)
    return [np.append(rng.integers(8, 97, length - 1), END) for length in lengths]


def test_the_known_example_has_six_targets_and_documents_do_not_reach_each_other():
    """Documents [1, 2, end] and [3, 4, 5, 6, end], of which the first token is not predicted from another."""
    objective, model = objective_of(begins_next=False), network()
    batch = objective.batch(np.array([[1, 2, END, 3, 4, 5, 6, END]]), np.random.default_rng(0))
    assert batch["targets"].tolist() == [[2, END, -100, 4, 5, 6, END]]
    assert batch["documents"].tolist() == [[0, 0, 0, 1, 1, 1, 1]]
    loss, count = objective.loss(model, batch)
    assert count == 6
    other = {**batch, "inputs": batch["inputs"].clone()}
    other["inputs"][0, 0] = 50
    seen = {name: batch["documents"] == number for name, number in (("first", 0), ("second", 1))}
    alone = {**batch, "targets": batch["targets"].where(seen["second"], -100)}
    before = objective.loss(model, alone)
    after = objective.loss(model, {**alone, "inputs": other["inputs"]})
    assert before[1] == 4 and torch.equal(before[0], after[0])
    assert objective.loss(model, other)[0] != loss


@pytest.mark.parametrize("begins_next", [True, False])
@pytest.mark.parametrize(
    ("family", "changes"),
    [
        *(("gpt2", {"positions": kind}) for kind in POSITIONS),
        ("mistral", {"sliding_window": 4}),
        ("gptj", {}),
    ],
    ids=str,
)
def test_loss_and_gradients_are_those_of_one_document_at_a_time(family, changes, begins_next):
    model = network(family, **changes)
    documents = draw(6, 2, 1, 9, 5)
    window = np.concatenate(documents)
    if begins_next:  # what stands between two documents is read with the second
        window = np.concatenate([[END], window])
        documents = [np.concatenate([[END], document]) for document in documents]
    objective = objective_of(begins_next=begins_next)
    batch = objective.batch(window[None], np.random.default_rng(0))
    loss, count = objective.loss(model, batch)
    ours = gradients(model, loss)
    plain, total, number = CausalLM(), torch.zeros(()), 0
    for document in documents:
        if len(document) > 1:
            each, targets = plain.loss(model, plain.batch(document[None], np.random.default_rng(0)))
            total, number = total + each, number + targets
    assert count == number == len(window) - (1 if begins_next else len(documents))
    torch.testing.assert_close(loss, total, rtol=1e-5, atol=0)
    assert_same_gradients(ours, gradients(model, total))
    concatenated, _ = plain.loss(model, plain.batch(window[None], np.random.default_rng(0)))
    assert abs(float((concatenated - loss).detach())) > 0.01


@pytest.mark.parametrize("backend", BACKENDS)
def test_every_attention_backend_computes_it(backend):
    model, objective = network(max_positions=64), objective_of(begins_next=True)
    batch = objective.batch(np.concatenate(draw(20, 17, 23))[None], np.random.default_rng(0))
    expected = objective.loss(model, batch)[0]
    gradient = gradients(model, expected)
    model.attention_backend = backend
    loss = objective.loss(model, batch)[0]
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=0)
    for name, each in gradients(model, loss).items():
        torch.testing.assert_close(each, gradient[name], rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize(
    ("family", "changes"), [("bert", {}), ("bert", {"positions": "alibi"}), ("roberta", {})], ids=str
)
def test_encoders_read_one_document_at_a_time_too(family, changes):
    model = network(family, **changes)
    objective = MaskedLM(3, np.arange(97) < 8, ([5], [6]))
    documents = draw(8, 12, 7)
    window = np.concatenate(documents)[None]
    objective.isolate(END, begins_next=True)
    batch = objective.batch(window, np.random.default_rng(0))
    assert batch["documents"].tolist() == [[0] * 9 + [1] * 12 + [2] * 8]
    loss, count = objective.loss(model, batch)
    ours, total = gradients(model, loss), torch.zeros(())
    for number in range(3):
        part = batch["documents"][0] == number
        alone = {name: batch[name][:, part] for name in ("inputs", "targets")}
        total = total + objective.loss(model, alone)[0]
    assert count == int((batch["targets"] != -100).sum()) > 0
    torch.testing.assert_close(loss, total, rtol=1e-5, atol=0)
    assert_same_gradients(ours, gradients(model, total))


# ---- in a run


@pytest.fixture(scope="module")
def stores(texts, tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("cache")
    lines = [{"text": line} for text in texts["text"] for line in text.split("\n") if line.strip()]
    parts = (lines[:-80], lines[-80:])
    return [nb.data.pack(part, tokenizer, folder=folder) for part in parts]


def make(tokenizer, family="llama", **changes):
    shape = {"num_layers": 1, "hidden_size": 32, "num_heads": 2, "max_positions": 64, "seed": 1}
    return nb.LM.new(family, tokenizer=tokenizer, **shape, **changes)


@pytest.mark.parametrize("objective", ["causal_lm", "fill_in_the_middle"])
def test_it_is_a_setting_of_a_run_which_validates_and_is_replayed(objective, tokenizer, stores, tmp_path):
    settings = {
        "objective": objective, "steps": 4, "batch_size": 2, "sequence_length": 48, "checkpoint_interval": 2,
        "validation_interval": 2, "validation_tokens": 500, "sample_interval": 0, "precision": "float32",
        "num_threads": 1,
    }  # fmt: skip
    runs = [
        nb.train(
            make(tokenizer), stores[0], validation=stores[1], folder=tmp_path, name=packing, packing=packing, **settings
        ).wait(progress=False)
        for packing in ("isolated", "concatenated")
    ]  # fmt: skip
    assert runs[0].state == "finished" and nb.replay(runs[0], progress=False).identical
    assert runs[0].events("end")[-1]["digest"] != runs[1].events("end")[-1]["digest"]
    assert runs[0].record["config"]["packing"] == "isolated"


@pytest.mark.parametrize("bos", [False, True])
def test_bits_per_byte_are_those_of_each_document_alone(bos, texts, tmp_path):
    """The first token of a document that is known to come costs nothing, and no byte is counted twice."""
    tokenizer = nb.data.train_tokenizer(texts, vocab_size=300)
    if bos:
        tokenizer.add_special_tokens({"bos_token": "<s>"})
    lines = ["one line", "another line of text", "third", "fourth: 12 13 14"]
    store = nb.data.pack([{"text": line} for line in lines], tokenizer, folder=tmp_path)
    lm = make(tokenizer)
    config = nb.TrainConfig(sequence_length=store.num_tokens - 1, batch_size=1, packing="isolated")
    measured = Validation(store, make_objective(config, tokenizer), config).measure(
        OneProcess(lm.model), "cpu"
    )
    nats, tokens = 0.0, store.read()
    for number, line in enumerate(lines):
        first = tokenizer.bos_token_id if bos else tokenizer.eos_token_id
        ids = torch.tensor([[first, *tokenizer.encode(line), tokenizer.eos_token_id]])
        if not bos and not number:
            ids = ids[:, 1:]  # nothing stands before the very first document
        logits = lm.model(ids[:, :-1]).log_softmax(-1)
        nats -= float(logits.detach().gather(2, ids[:, 1:, None]).sum())
    share = (len(tokens) - 1) / len(tokens)
    assert measured["bits_per_byte"] == pytest.approx(
        nats / math.log(2) / (store.num_bytes * share), rel=1e-5
    )
    assert measured["tokens"] == len(tokens) - (len(lines) if bos else 1)


def test_what_cannot_be_isolated_is_refused(tokenizer, stores, tmp_path):
    settings = {"folder": tmp_path, "sequence_length": 32, "packing": "isolated"}
    with pytest.raises(UserError, match="cannot isolate documents: it is an encoder-decoder"):
        nb.train(make(tokenizer, "t5"), stores[0], objective="span_corruption", **settings)
    with pytest.raises(UserError, match="'span_corruption' cannot isolate documents"):
        prefix = make(tokenizer, network="prefix_decoder")
        nb.train(prefix, stores[0], objective="span_corruption", **settings)
    with pytest.raises(UserError, match="packing is 'isolate'; it must be one of.*isolated"):
        nb.train(make(tokenizer), stores[0], **{**settings, "packing": "isolate"})
    assert not (tmp_path / "runs").exists()
    assert FillInTheMiddle.can_isolate and not FillInTheMiddle.counts_every_token
