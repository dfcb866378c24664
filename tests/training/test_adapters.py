"""A run that trains an adapter: steered, checkpointed, forked and replayed as any other."""

import peft
import pytest
import torch
import transformers

import nbllm as nb
from nbllm.core.errors import RunError, UserError, WeightsError
from nbllm.evaluation.provenance import model_fingerprint
from nbllm.inference.runners.compiled_spec import is_computed
from nbllm.models.peft.files import CONFIG
from nbllm.models.peft.known import ADAPTERS
from nbllm.models.quantized import quantized_layers

IDS = torch.tensor([[3, 7, 5, 9, 11, 4]])


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_only_the_adapter_is_trained(lm, store, config, tmp_path, precision):
    state = {name: value.clone() for name, value in lm.model.state_dict().items()}
    adapter = lm.attach(nb.LoRA(rank=2, targets=("query", "up")), seed=1)
    before = {name: value.clone() for name, value in adapter.parameters().items()}
    chosen = {**config, "precision": precision}
    run = nb.train(lm, store, folder=tmp_path, name="adapted", **chosen)
    run.wait(progress=False)
    assert run.state == "finished"
    now = lm.model.state_dict()
    assert all(torch.equal(now[name], value) for name, value in state.items())
    assert all(not torch.equal(now[name], value) for name, value in before.items())
    opened = nb.load(run)
    assert opened.adapters[0].config == adapter.config
    torch.testing.assert_close(opened.model(IDS), lm.model(IDS), atol=1e-6, rtol=1e-6)
    assert nb.replay(run, progress=False).identical
    if precision == "float32":
        fork = run.fork("forked", step=4, lr=1e-3)
        fork.wait(progress=False)
        assert fork.state == "finished" and nb.load(fork).adapters


SETTINGS = {
    "lora": nb.LoRA(rank=2, dora=True, targets=("query", "head")),
    "ia3": nb.IA3(),
    "bitfit": nb.BitFit(),
    "prompt_tuning": nb.PromptTuning(num_virtual_tokens=3),
    "p_tuning": nb.PTuning(num_virtual_tokens=3, encoder="lstm", encoder_hidden_size=8),
    "prefix_tuning": nb.PrefixTuning(num_virtual_tokens=3),
    "p_tuning_v2": nb.PTuningV2(num_virtual_tokens=3),
    "houlsby": nb.Houlsby(reduction_factor=8),
    "pfeiffer": nb.Pfeiffer(reduction_factor=8),
    "qlora": nb.QLoRA(rank=2),
}


@pytest.mark.parametrize("method", ADAPTERS)
def test_every_method_is_trained_resumed_and_replayed(method, tokenizer, store, config, tmp_path):
    family = "gpt2" if method == "bitfit" else "llama"  # llama has no biases
    lm = nb.LM.new(
        family, tokenizer=tokenizer, num_layers=2, hidden_size=32, num_heads=2, max_positions=64, seed=1
    )
    adapter = lm.attach(SETTINGS[method], seed=1)
    base = {n: value.clone() for n, value in lm.model.state_dict().items() if "adapters." not in n}
    before = {name: value.clone() for name, value in adapter.parameters().items()}
    run = nb.train(lm, store, folder=tmp_path, **{**config, "steps": 8, "checkpoint_interval": 2})
    run.stop()
    run.wait(progress=False)
    run.resume()
    run.wait(progress=False)
    assert run.state == "finished"
    now = lm.model.state_dict()
    assert all(torch.equal(now[name], value) for name, value in base.items())
    assert all(not torch.equal(now[name], value) for name, value in before.items())
    opened = nb.load(run)
    assert opened.adapters[0].config == adapter.config
    torch.testing.assert_close(opened.model(IDS), lm.model(IDS), atol=1e-6, rtol=1e-6)
    assert nb.replay(run, progress=False).identical


@pytest.mark.parametrize(
    ("family", "objective", "method"),
    [
        ("bert", "masked_lm", nb.PTuningV2(num_virtual_tokens=3)),
        ("bert", "masked_lm", nb.LoRA(rank=2, targets=("all-linear", "head"))),
        ("t5", "span_corruption", nb.PromptTuning(num_virtual_tokens=3)),
        ("t5", "span_corruption", nb.PrefixTuning(num_virtual_tokens=3)),
        ("rwkv", "causal_lm", nb.PromptTuning(num_virtual_tokens=3)),
    ],
)
def test_networks_of_other_kinds_are_trained(family, objective, method, texts, tmp_path):
    tokenizer = nb.objectives.add_tokens(nb.data.train_tokenizer(texts, vocab_size=320), objective)
    shape = {"num_layers": 2, "hidden_size": 32, "max_positions": 64, "seed": 1}
    lm = nb.LM.new(family, tokenizer=tokenizer, **shape, **({} if family == "rwkv" else {"num_heads": 2}))
    before = {n: p.clone() for n, p in lm.attach(method, seed=1).parameters().items()}
    settings = {"steps": 3, "batch_size": 2, "sequence_length": 24, "precision": "float32", "num_threads": 1}
    run = nb.train(lm, texts, objective=objective, folder=tmp_path, **settings)
    run.wait(progress=False)
    assert run.state == "finished"
    after = lm.adapters[0].parameters()
    assert any(not torch.equal(after[name], value) for name, value in before.items())
    assert nb.load(run).adapters[0].config == method


def test_examples_are_packed_behind_virtual_tokens(lm, tmp_path):
    """The loss of several examples in a row is that of each alone."""
    examples = [{"prompt": "Say", "completion": " it."}, {"prompt": "Name", "completion": " it now."}] * 4
    chosen = {"steps": 2, "sequence_length": 40, "batch_size": 2, "precision": "float32", "folder": tmp_path}
    run = nb.finetune(lm, examples, adapter=nb.PrefixTuning(num_virtual_tokens=4), **chosen)
    run.wait(progress=False)
    assert run.state == "finished" and lm.adapters[0].config.name == "prefix_tuning"
    lm.adapters[0].detach()
    with pytest.raises(UserError, match="from 1 to 44"):
        prompt = nb.PromptTuning(num_virtual_tokens=20)
        nb.finetune(lm, examples, adapter=prompt, **{**chosen, "sequence_length": 50})
    assert lm.adapters == ()


def test_it_stays_while_it_is_trained(lm, store, config, tmp_path):
    adapter = lm.attach(nb.LoRA(rank=2))
    run = nb.train(lm, store, folder=tmp_path, **{**config, "steps": 10_000})
    try:
        for change in (lm.merge, adapter.off, adapter.detach):
            with pytest.raises(RunError, match="being trained"):
                change()
    finally:
        run.stop()
        run.wait(progress=False)
    lm.merge()
    with pytest.raises(RunError, match="merged"):  # at once, or once the session has begun
        run.resume()
        run.wait(progress=False)


class TestLM:
    def test_it_is_shown_saved_and_opened(self, lm, tmp_path):
        assert lm.adapters == ()
        with pytest.raises(UserError, match="no adapter"):
            lm.merge()
        adapter = lm.attach(nb.LoRA(rank=2))
        assert lm.adapters == (adapter,)
        assert "rank 2" in repr(adapter) and f"{adapter.num_parameters:,} parameters" in repr(adapter)
        with pytest.raises(UserError, match="adapter already"):
            lm.attach(nb.LoRA())
        for parameter in adapter.parameters().values():
            torch.nn.init.normal_(parameter)
        adapted = lm.model(IDS)
        lm.save_adapter(tmp_path / "adapter")
        lm.save_adapter(tmp_path / "adapter")  # over an older one
        with pytest.raises(UserError, match=r"Merge|would not hold"):
            lm.save(tmp_path / "model")
        copy = lm.copy()
        assert torch.equal(copy.model(IDS), adapted)
        copy.adapters[0].off()
        assert torch.equal(lm.model(IDS), adapted)
        adapter.detach()
        assert not torch.equal(lm.model(IDS), adapted) and lm.adapters == ()
        lm.attach(tmp_path / "adapter")
        assert torch.equal(lm.model(IDS), adapted)
        lm.merge().save(tmp_path / "model")
        merged = nb.load(tmp_path / "model")
        assert merged.adapters == ()
        torch.testing.assert_close(merged.model(IDS), adapted, atol=1e-5, rtol=1e-5)

    def test_it_is_not_written_over_something_else(self, lm, tmp_path):
        lm.attach(nb.LoRA())
        (tmp_path / "notes.txt").write_text("mine")
        with pytest.raises(UserError, match="something else"):
            lm.save_adapter(tmp_path)
        assert not (tmp_path / CONFIG).exists()

    @pytest.mark.parametrize(
        "method", [nb.PromptTuning(num_virtual_tokens=5), nb.PTuningV2(num_virtual_tokens=5)]
    )
    def test_an_encoder_decoder_writes_with_virtual_tokens(self, texts, method):
        tokenizer = nb.objectives.add_tokens(
            nb.data.train_tokenizer(texts, vocab_size=320), "span_corruption"
        )
        shape = {"num_layers": 2, "hidden_size": 32, "num_heads": 2, "max_positions": 64}
        lm = nb.LM.new("t5", tokenizer=tokenizer, **shape)
        for parameter in lm.model.parameters():
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=0.3, generator=torch.Generator().manual_seed(4))
        prompts, settings = ["a", "the import statement"], {"max_new_tokens": 8, "temperature": 0}
        plain = lm.generate(prompts, **settings)
        adapter = lm.attach(method, seed=3)
        for parameter in adapter.parameters().values():
            torch.nn.init.normal_(parameter, std=8, generator=torch.Generator().manual_seed(2))
        found = lm.generate(prompts, **settings)
        assert found != plain and found == [lm.generate(prompt, **settings) for prompt in prompts]
        assert lm.generate(prompts, num_beams=1, **settings) == found
        with adapter.disabled():
            assert lm.generate(prompts, **settings) == plain

    def test_generation_uses_it(self, lm):
        plain = lm.generate("a", max_new_tokens=12, temperature=0)
        adapter = lm.attach(nb.LoRA(rank=4, targets=("query", "value", "down")))
        for parameter in adapter.parameters().values():
            torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(2))
        assert lm.generate("a", max_new_tokens=12, temperature=0) != plain
        with adapter.disabled():
            assert lm.generate("a", max_new_tokens=12, temperature=0) == plain

    @pytest.mark.parametrize(
        "method", [nb.PromptTuning(num_virtual_tokens=5), nb.PTuningV2(num_virtual_tokens=5)]
    )
    def test_generation_begins_with_virtual_tokens(self, lm, method):
        """Texts of a batch, with a cache, are what each is when it is read anew for every token."""
        for parameter in lm.model.parameters():  # so that what is attended to matters
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=0.3, generator=torch.Generator().manual_seed(4))
        prompts = ["a", "the import statement"]
        settings = {"max_new_tokens": 8, "temperature": 0}
        plain = lm.generate(prompts, **settings)
        adapter = lm.attach(method, seed=3)
        for parameter in adapter.parameters().values():
            torch.nn.init.normal_(parameter, std=8, generator=torch.Generator().manual_seed(2))
        found = lm.generate(prompts, **settings)
        assert found != plain
        for prompt, text in zip(prompts, found, strict=True):
            ids = lm.tokenizer(prompt)["input_ids"]
            for _ in range(8):
                ids.append(int(lm.model(torch.tensor([ids]))[0, -1].argmax()))
            assert prompt + text == lm.tokenizer.decode(ids)
        assert lm.generate("a", max_new_tokens=100, temperature=0).stopped_by == "context"
        scores = lm.score("the import statement")
        with adapter.disabled():
            assert lm.generate(prompts, **settings) == plain and lm.score("the import statement") != scores


class TestWeightsInFourBits:
    def test_they_are_shown_saved_copied_and_released(self, lm, tmp_path):
        plain, before = lm.model(IDS), lm.model.num_bytes
        count, described = lm.num_parameters, sum(row.parameters for row in lm.model.describe())
        fingerprint = model_fingerprint(lm)
        lm.quantize()
        assert lm.num_parameters == count and sum(row.parameters for row in lm.model.describe()) == described
        in_blocks = 4 * sum(layer.num_weights for layer in quantized_layers(lm.model).values())
        assert lm.model.num_bytes < before - 0.85 * in_blocks
        assert "in 4 bits" in lm._repr_html_() and model_fingerprint(lm) != fingerprint
        in_4_bits = lm.model(IDS)
        assert 1e-6 < (in_4_bits - plain).abs().max() < 0.1
        assert lm.generate("a", max_new_tokens=4)
        with pytest.raises(UserError, match="not quantized yet"):
            lm.quantize()
        with pytest.raises(UserError, match="dequantize"):
            lm.save(tmp_path / "model.gguf")
        assert torch.equal(lm.copy().model(IDS), in_4_bits)

        lm.save(tmp_path / "model")
        opened = nb.load(tmp_path / "model")
        assert quantized_layers(opened.model) and torch.equal(opened.model(IDS), in_4_bits)
        assert model_fingerprint(opened) == model_fingerprint(lm)
        theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model").eval()
        torch.testing.assert_close(theirs(IDS).logits, in_4_bits, atol=1e-5, rtol=1e-5)
        (tmp_path / "model" / "nf4.safetensors").write_bytes(b"damaged")
        with pytest.raises(WeightsError, match="in 4 bits cannot be read"):
            nb.load(tmp_path / "model")
        lm.dequantize().save(tmp_path / "model")
        assert not (tmp_path / "model" / "nf4.safetensors").exists()
        torch.testing.assert_close(lm.model(IDS), in_4_bits, atol=1e-5, rtol=1e-5)
        assert is_computed(lm.model)  # joined again

    @pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")  # within peft
    def test_an_adapter_on_them_is_merged_once_they_are_released(self, lm, tmp_path):
        adapter = lm.attach(nb.QLoRA(rank=2, dora=True))
        assert len(quantized_layers(lm.model)) == len(adapter.parts) and "in 4 bits" in repr(adapter)
        for parameter in adapter.parameters().values():
            parameter.data += torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2)) * 0.1
        adapted = lm.model(IDS)
        with pytest.raises(UserError, match=r"lm\.dequantize"):
            lm.merge()
        lm.save_adapter(tmp_path / "adapter")
        lm.dequantize()
        torch.testing.assert_close(lm.model(IDS), adapted, atol=1e-5, rtol=1e-5)
        adapter.off()
        lm.save(tmp_path / "base")
        adapter.on()
        base = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base")
        theirs = peft.PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
        torch.testing.assert_close(theirs(IDS).logits, adapted, atol=1e-5, rtol=1e-5)
        lm.merge()
        torch.testing.assert_close(lm.model(IDS), adapted, atol=1e-5, rtol=1e-5)
        with pytest.raises(UserError, match="merged"):
            lm.quantize()
        lm.unmerge()
        assert adapter.state == "on"
