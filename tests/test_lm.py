import math
import subprocess
import sys
import threading

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from nbllm.core.errors import UserError, WeightsError
from nbllm.lm import LM
from nbllm.opening import load

EOS = "<|endoftext|>"
TEXTS = ["the cat sat on the mat", "", "naïve café\n\n  x = {1: '日本'}", "a" * 90]


@pytest.fixture(scope="module")
def tokenizer():
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=290,
        special_tokens=[EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(["the cat sat on the mat and the dog on the log"] * 4, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token=EOS, eos_token=EOS, pad_token=EOS)


@pytest.fixture(params=["gpt2", "llama"])
def lm(request, tokenizer):
    return small(request.param, tokenizer)


def small(family, tokenizer, **changes):
    shape = {
        "hidden_size": 32,
        "num_layers": 2,
        "num_heads": 4,
        "max_positions": 32,
        "initializer_range": 0.2,
    }
    return LM.new(family, tokenizer=tokenizer, **{**shape, **changes})


def test_a_new_model_has_the_tokenizers_vocabulary(lm, tokenizer):
    assert lm.config.vocab_size == len(tokenizer)
    assert lm.num_parameters == sum(parameter.numel() for parameter in lm.model.parameters())


def test_the_seed_decides_the_weights(tokenizer):
    ids = torch.tensor([[1, 2, 3]])
    first, again, other = (small("gpt2", tokenizer, seed=seed).model(ids) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_wrong_arguments_are_named(tokenizer):
    with pytest.raises(UserError, match="Did you mean 'gpt2'"):
        LM.new("gtp2", tokenizer=tokenizer)
    with pytest.raises(UserError, match="Did you mean 'num_layers'"):
        LM.new("gpt2", tokenizer=tokenizer, n_layers=2)
    with pytest.raises(UserError, match=r"tokenizer has \d+ tokens, the model only 100"):
        small("gpt2", tokenizer, vocab_size=100)


@pytest.mark.parametrize("dtype", ["bfloat16", "bf16", torch.bfloat16, "torch.bfloat16"])
def test_a_model_is_opened_in_a_dtype_by_its_name(tokenizer, tmp_path, dtype):
    path = small("llama", tokenizer).save(tmp_path / "model")
    assert load(path, dtype=dtype).model.dtype == torch.bfloat16
    for wrong in ("int8", torch.int64, "brain", 16):
        with pytest.raises(UserError, match="must be one of 'float32', 'bfloat16', 'float16'"):
            load(path, dtype=wrong)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_copy_has_weights_of_its_own(lm, dtype):
    lm.model.to(dtype)
    lm.origin, lm.sampling = "there", {"temperature": 0.5}
    copy, ids = lm.copy(), torch.tensor([[1, 2, 3]])
    assert (copy.model.dtype, copy.origin, copy.sampling) == (dtype, "there", {"temperature": 0.5})
    assert copy.tokenizer is lm.tokenizer
    before = lm.model(ids)
    assert torch.equal(copy.model(ids), before)
    with torch.no_grad():
        for parameter in copy.model.parameters():
            parameter.add_(1)
    copy.sampling["temperature"] = 1.0
    assert torch.equal(lm.model(ids), before)
    assert not torch.equal(copy.model(ids), before)
    assert lm.sampling == {"temperature": 0.5}


def test_saved_it_opens_here_and_in_transformers(lm, tmp_path):
    path = lm.save(tmp_path / "model")
    opened = load(path)
    theirs, tokenizer = AutoModelForCausalLM.from_pretrained(path), AutoTokenizer.from_pretrained(path)
    for text in TEXTS:
        ids = lm.tokenizer(text)["input_ids"]
        assert opened.tokenizer(text)["input_ids"] == tokenizer(text)["input_ids"] == ids
        assert tokenizer.decode(ids) == opened.tokenizer.decode(ids) == text
    ids = torch.tensor([lm.tokenizer(TEXTS[0])["input_ids"]])
    assert torch.equal(opened.model(ids), lm.model(ids))
    torch.testing.assert_close(theirs(ids).logits, lm.model(ids), atol=1e-5, rtol=0)
    assert opened.config == lm.config
    assert theirs.config.eos_token_id == theirs.generation_config.eos_token_id == lm.tokenizer.eos_token_id
    assert tokenizer.eos_token == EOS


def test_greedy_text_is_transformers(lm, tmp_path):
    theirs = AutoModelForCausalLM.from_pretrained(lm.save(tmp_path / "model"))
    prompt = lm.tokenizer("the cat", return_tensors="pt")
    expected = theirs.generate(
        **prompt, max_new_tokens=12, do_sample=False, pad_token_id=lm.tokenizer.eos_token_id
    )[0, prompt["input_ids"].shape[1] :]
    got = lm.generate("the cat", temperature=0.0, max_new_tokens=12)
    assert got == lm.tokenizer.decode(expected, skip_special_tokens=True)


def test_a_text_that_was_cut_off_unasked_is_said_once(tokenizer, capsys):
    lm = small("gpt2", tokenizer, max_positions=128)
    with torch.no_grad():
        lm.model.norm.bias.zero_()
        lm.model.embedding.weight[lm.tokenizer.eos_token_id].zero_()  # it ends no text
    made = lm.generate("the cat", temperature=0)
    assert (made.stopped_by, len(made.tokens)) == ("length", 100)
    told = capsys.readouterr()
    assert "A text ended after 100 tokens, the default; max_new_tokens=... sets another" in told.err
    assert not told.out
    lm.generate(["the cat", "the mat"], temperature=0)
    lm.generate("the cat", max_new_tokens=5)
    assert not capsys.readouterr().err
    made = lm.generate(["the cat", "the mat"], temperature=0, max_new_tokens=500)
    assert [each.stopped_by for each in made] == ["context"] * 2
    assert capsys.readouterr().err.count("filled the model's context") == 1
    assert lm.chat("the cat", temperature=0).stopped_by == "context"
    assert not capsys.readouterr().err


def test_a_chat_that_was_cut_off_is_said_too(tokenizer, capsys):
    lm = small("gpt2", tokenizer, max_positions=128)
    assert lm.chat("the cat", max_new_tokens=500, temperature=0).stopped_by == "context"
    assert "filled the model's context" in capsys.readouterr().err


def test_a_failed_save_leaves_what_was_there(lm, tmp_path, monkeypatch):
    path = lm.save(tmp_path / "model")
    before = {file.name: file.read_bytes() for file in path.iterdir()}

    def fail(folder):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(lm.tokenizer, "save_pretrained", fail)
    with pytest.raises(OSError, match="No space"):
        lm.save(path)
    assert {file.name: file.read_bytes() for file in path.iterdir()} == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_directory_without_a_tokenizer(lm, tmp_path):
    path = lm.save(tmp_path / "model")
    for file in path.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(WeightsError, match="holds no tokenizer"):
        load(path)
    assert load(path, tokenizer=lm.tokenizer).num_parameters == lm.num_parameters


@pytest.mark.parametrize("content", ["", "{", '{"model": 3}'])
def test_a_broken_tokenizer(lm, tmp_path, content):
    path = lm.save(tmp_path / "model")
    (path / "tokenizer.json").write_text(content)
    with pytest.raises(WeightsError, match="tokenizer cannot be read"):
        load(path)


def test_a_path_that_is_not_there(tmp_path):
    with pytest.raises(WeightsError, match="no such model directory"):
        load(tmp_path / "nothing")


def test_a_run_opens_at_its_newest_good_checkpoint(lm, tmp_path):
    from nbllm.runs import checkpoint

    run = tmp_path / "run"
    run.mkdir()
    (run / "run.json").write_text("{}")
    with pytest.raises(WeightsError, match="no checkpoint"):
        load(run)
    weight = lm.model.norm.weight.detach()
    for step in (10, 20):
        weight.fill_(step)
        checkpoint.save(run, step, lm.write_files, {"num_actions": 0})
    opened = load(run)
    assert (opened.model.norm.weight[0].item(), opened.origin) == (20, "run")
    assert load(checkpoint.checkpoints(run)[0].path).origin == "run/step-00000010"
    newest = checkpoint.checkpoints(run)[-1].path / "model.safetensors"
    content = bytearray(newest.read_bytes())
    content[-1] ^= 1  # one flipped bit, which safetensors would never notice
    newest.write_bytes(content)
    with pytest.warns(UserWarning, match="step-00000020"):
        opened = load(run)
    assert opened.model.norm.weight[0].item() == 10


def test_score_is_the_probability_of_the_text(lm):
    scores = lm.score(TEXTS)
    for text, score in zip(TEXTS, scores, strict=True):
        ids = lm.tokenizer(text)["input_ids"]
        assert (score.num_tokens, score.num_bytes) == (len(ids), len(text.encode()))
    ids = [lm.tokenizer.eos_token_id, *lm.tokenizer(TEXTS[0])["input_ids"]]
    log_probabilities = lm.model(torch.tensor([ids[:-1]])).detach()[0].log_softmax(-1)
    expected = sum(float(log_probabilities[i, token]) for i, token in enumerate(ids[1:]))
    assert scores[0].log_probability == pytest.approx(expected, abs=1e-3)
    assert scores[0].bits_per_byte == pytest.approx(-expected / math.log(2) / len(TEXTS[0]), rel=1e-4)
    assert scores[1].log_probability == 0 and math.isnan(scores[1].bits_per_byte)
    assert (
        lm.score(TEXTS[2]) == [pytest.approx(scores[2])]
        or abs(lm.score(TEXTS[2])[0].log_probability - scores[2].log_probability) < 1e-3
    )


def test_what_reads_the_weights_waits_for_whoever_changes_them(lm):
    finished = threading.Event()

    def read():
        lm.score("the cat")
        finished.set()

    with lm.lock:
        thread = threading.Thread(target=read)
        thread.start()
        assert not finished.wait(0.3)
    assert finished.wait(10)
    thread.join()


def test_what_a_cell_shows(lm):
    html = lm._repr_html_()
    assert f"{lm.num_parameters:,}" in html
    for part in ("embedding", "attention", "feed_forward", "norm", "head"):
        assert part in html
    assert "2 layers x 32" in repr(lm) and lm.config.family in repr(lm)


def test_the_rows_of_the_table_add_up(lm):
    rows = lm.model.describe()
    assert sum(row.parameters for row in rows) == lm.num_parameters
    assert sum(row.num_bytes for row in rows) == sum(p.nbytes for p in lm.model.parameters())


def test_importing_it_loads_nothing_heavy():
    code = "import nbllm.lm, sys; sys.exit(any(n in sys.modules for n in ('torch', 'transformers', 'numba')))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_positions_are_counted_from_the_padding_token_of_the_tokenizer(tokenizer):
    shape = {"num_layers": 1, "hidden_size": 16, "num_heads": 2}
    with pytest.raises(UserError, match="(?s)does not count token 1.*position_offset=1"):
        LM.new("roberta", tokenizer=tokenizer, position_offset=2, **shape)
    lm = LM.new("roberta", tokenizer=tokenizer, **shape)
    assert lm.config.position_offset == tokenizer.pad_token_id + 1 and lm.model.can == {"embed", "fill"}
    assert LM.new("opt", tokenizer=tokenizer, **shape).config.position_offset == 2  # which counts by the mask
