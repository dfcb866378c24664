"""RWKV-4 against transformers': logits and gradients from the same weights, greedy text, files both ways."""

import copy

import pytest
import torch
import torch.nn.functional as F
import transformers

import nbllm as nb
from nbllm.core.errors import UserError, WeightsError
from nbllm.inference import SamplingConfig, generate_ids
from nbllm.inference.drafters.prompt_lookup import PromptLookup
from nbllm.inference.execution import Execution
from nbllm.models.config import ModelConfig
from nbllm.models.families import FAMILIES
from nbllm.models.loading import load_model, save_model
from nbllm.models.network import build, build_without_weights
from nbllm.models.presets import make_config
from nbllm.models.scoring import token_log_probabilities
from nbllm.nn import wkv
from nbllm.objectives import CausalLM

TINY = dict(vocab_size=131, hidden_size=48, num_hidden_layers=5, context_length=64)
CASES = {
    "usual": {"rescale_every": 2},
    "narrow": {"rescale_every": 0, "intermediate_size": 80, "layer_norm_epsilon": 1e-3},
}


@pytest.fixture(scope="module", params=CASES)
def tiny(request):
    """A model with weights large enough that every part matters."""
    model = transformers.RwkvForCausalLM(transformers.RwkvConfig(**TINY, **CASES[request.param]))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "time_mix" in name:
                weight.uniform_(0, 1, generator=generator)
            elif "time_" not in name:
                mean = 1.0 if weight.dim() == 1 and not name.endswith("bias") else 0.0
                weight.normal_(mean, 0.3, generator=generator)
            else:
                weight.normal_(0, 1, generator=generator)
    return model.train()  # as long as it is, transformers has not halved its weights


@pytest.fixture(scope="module")
def saved(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("rwkv")
    tiny.save_pretrained(folder)
    return folder


@pytest.fixture
def ours(saved):
    return load_model(saved)


@pytest.fixture(scope="module")
def evaluating(saved):
    return transformers.RwkvForCausalLM.from_pretrained(saved).eval()


def ids(*shape, seed=1):
    return torch.randint(131, shape, generator=torch.Generator().manual_seed(seed))


def test_logits_in_training_and_in_evaluation(tiny, evaluating, ours):
    tokens = ids(3, 21)
    with torch.no_grad():
        for theirs, mine in ((tiny, ours.train()), (evaluating, ours.eval())):
            expected = theirs(tokens).logits
            torch.testing.assert_close(
                mine(tokens), expected, atol=1e-5 * float(expected.abs().max()), rtol=0
            )


@pytest.mark.parametrize("form", ["kernel", "chunks"])
def test_gradients(tiny, ours, form, monkeypatch):
    if form == "kernel":
        monkeypatch.setattr("nbllm.nn.kernels.FEWEST", 0)
        monkeypatch.setattr(wkv, "_by_chunks", None)
    tokens = ids(2, 21)
    tiny.zero_grad()
    logits = tiny(tokens, use_cache=False).logits[:, :-1]
    expected = F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten(), reduction="sum")
    expected.backward()
    objective = CausalLM()
    loss, count = objective.loss(ours.train(), objective.batch(tokens.numpy(), None))
    assert count == 40
    torch.testing.assert_close(loss, expected, atol=1e-4, rtol=1e-5)
    loss.backward()
    theirs = {name: weight.grad for name, weight in tiny.named_parameters()}
    mine = dict(ours.named_parameters())
    for rule in FAMILIES["rwkv"].rules(ours.config):
        found, wanted = mine[rule.targets[0]].grad, theirs[rule.source]
        assert wanted.any() and (found - wanted).norm() <= 1e-4 * wanted.norm(), rule.source


@pytest.mark.parametrize("pieces", [[20], [1] * 20, [7, 1, 12]])
def test_the_recurrent_form_equals_the_parallel_one(ours, pieces):
    ours.eval()
    tokens, cache = ids(3, 20), ours.make_cache(3, max_length=20)
    with torch.inference_mode():
        got = torch.cat([ours(part, cache=cache) for part in tokens.split(pieces, dim=1)], dim=1)
        torch.testing.assert_close(got, ours(tokens), atol=2e-5, rtol=1e-5)
    assert cache.length == 20 and not cache.can_crop
    cache.reset()
    assert cache.fits(3, 1 << 30, torch.float32, torch.device("cpu")) and not cache.sums[:, :2].any()


@pytest.mark.parametrize("pieces", [[20], [12, 1, 1, 6]])
def test_left_padding_changes_nothing(ours, pieces):
    ours.eval()
    tokens, lengths = ids(3, 20), [20, 13, 9]
    mask = torch.stack([torch.arange(20) >= 20 - length for length in lengths])
    cache, out, end = ours.make_cache(3, max_length=20), [], 0
    with torch.inference_mode():
        for part in tokens.split(pieces, dim=1):
            end += part.shape[1]
            out.append(ours(part, cache=cache, attention_mask=mask[:, :end]))
        got = torch.cat(out, dim=1)
        for row, length in enumerate(lengths):
            alone = ours(tokens[row : row + 1, -length:])
            torch.testing.assert_close(got[row, -length:], alone[0], atol=2e-5, rtol=1e-5)


def test_greedy_text_equals_transformers(evaluating, ours):
    """One text at a time: transformers mixes up the texts of a batch when it reads one token of each."""
    prompts = [ids(1, length, seed=length)[0].tolist() for length in (1, 6, 17)]
    expected = [
        evaluating.generate(
            torch.tensor([prompt]), do_sample=False, max_new_tokens=20, eos_token_id=None, pad_token_id=0
        )[0, len(prompt) :].tolist()
        for prompt in prompts
    ]  # fmt: skip
    greedy = SamplingConfig(temperature=0, max_new_tokens=20)
    assert all(len(set(text)) > 3 for text in expected)
    assert generate_ids(ours, prompts, greedy, eos_id=None) == expected
    drafted = generate_ids(ours, prompts, greedy, eos_id=None, execution=Execution(drafter=PromptLookup))
    assert drafted == expected  # a draft could not be taken back, so none is read


def test_beams_share_the_state(evaluating, ours):
    """Against transformers without its state, which it cannot reorder."""
    prompt = ids(1, 6)
    expected = evaluating.generate(
        prompt,
        num_beams=3,
        do_sample=False,
        max_new_tokens=10,
        eos_token_id=None,
        pad_token_id=0,
        use_cache=False,
    )
    made = generate_ids(
        ours, [prompt[0].tolist(), [5, 6]], SamplingConfig(num_beams=3, max_new_tokens=10), eos_id=None
    )
    assert made[0] == expected[0, 6:].tolist()


def test_scores_are_those_of_the_logits(ours):
    tokens = ids(1, 20)
    (found,) = token_log_probabilities(ours.eval(), [tokens[0].tolist()])
    expected = ours(tokens).log_softmax(-1)[0, :-1].gather(1, tokens[0, 1:, None])[:, 0]
    torch.testing.assert_close(found, expected.detach(), atol=1e-5, rtol=1e-5)


def test_transformers_opens_what_is_saved_here(ours, tmp_path):
    save_model(ours, tmp_path)
    theirs, report = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values()), report
    tokens = ids(2, 13)
    with torch.no_grad():
        expected = theirs.eval()(tokens).logits
        torch.testing.assert_close(
            ours.eval()(tokens), expected, atol=1e-5 * float(expected.abs().max()), rtol=0
        )
    assert load_model(tmp_path).config == ours.config


def test_bfloat16(ours, evaluating):
    tokens = ids(2, 13)
    with torch.no_grad():
        exact = ours.eval()(tokens)
        found = ours.to(torch.bfloat16)(tokens).float()
        theirs = copy.deepcopy(evaluating).to(torch.bfloat16)(tokens).logits.float()
    assert (found - exact).norm() <= 1.1 * (theirs - exact).norm()


def test_its_shape_its_preset_and_its_weight_map():
    assert build_without_weights(make_config("rwkv-4-169m")).num_parameters == 169_342_464
    config = make_config("rwkv", num_layers=2, tie_embeddings=True)
    targets = [name for rule in FAMILIES["rwkv"].rules(config) for name in rule.targets]
    model = build_without_weights(config)
    assert sorted(targets) == sorted(name for name, _ in model.named_parameters())
    assert sum(row.parameters for row in model.describe()) == model.num_parameters


def test_new_weights_are_transformers_but_for_the_matrices():
    config = make_config("rwkv", vocab_size=131, hidden_size=48, num_layers=5)
    theirs = transformers.RwkvForCausalLM(transformers.RwkvConfig(**TINY)).state_dict()
    mine = build(config).state_dict()
    for rule in FAMILIES["rwkv"].rules(config):
        if "time_mix" in rule.source or "time_decay" in rule.source:
            torch.testing.assert_close(mine[rule.targets[0]], theirs[rule.source])


@pytest.mark.parametrize(
    "setting",
    [{"num_heads": 4}, {"positions": "rotary"}, {"sliding_window": 4}, {"norm": "rms_norm"}, {"gated": True},
     {"head_dim": 8}, {"attention_bias": True}],
)  # fmt: skip
def test_what_it_does_not_compute_is_refused(setting):
    with pytest.raises(UserError, match=r"head|positions|sliding_window|norm|gated|attention_bias"):
        make_config("rwkv", **setting)
    with pytest.raises(UserError, match="rescale_every"):
        make_config("gpt2", rescale_every=6)
    with pytest.raises(UserError):
        build(ModelConfig(**{**make_config("rwkv", vocab_size=9).to_dict(), **setting}))


def test_a_state_narrower_than_the_stream_is_refused(saved, tmp_path):
    config = (
        (saved / "config.json")
        .read_text()
        .replace('"attention_hidden_size": 48', '"attention_hidden_size": 32')
    )
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(WeightsError, match="attention_hidden_size"):
        load_model(tmp_path)


def test_it_trains_in_a_run_and_generates(tmp_path):
    texts = nb.data.load("pydocs").select(range(5))
    tokenizer = nb.data.train_tokenizer(texts, vocab_size=300)
    lm = nb.LM.new("rwkv", tokenizer=tokenizer, num_layers=2, hidden_size=32, max_positions=64)
    run = nb.train(
        lm, texts, folder=tmp_path, name="run", steps=8, batch_size=4, sequence_length=32, lr=1e-2, validation=None,
        sample_interval=8, num_threads=1,
    ).wait(progress=False)  # fmt: skip
    losses = run.history("loss")[1]
    assert run.state == "finished" and losses[-1] < losses[0] - 0.2
    again = nb.load(run)
    assert again.generate("def add", temperature=0, max_new_tokens=5) == lm.generate(
        "def add", temperature=0, max_new_tokens=5
    )
    assert again.embed(["a cat"]).shape == (1, 32)
    assert again.score("a cat")[0].log_probability < 0
