"""Losses and gradients of the methods that learn from preferences equal trl's on the same batch."""

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM

import nbllm as nb
from nbllm.finetuning import METHODS
from nbllm.models.loading import load_model
from nbllm.training.config import TrainConfig
from nbllm.training.objective import make_objective


@pytest.fixture
def case(plain_tokenizer, tmp_path):
    """A model that has left its reference."""
    return Case(plain_tokenizer, tmp_path)


class Case:
    def __init__(self, tokenizer, folder):
        self.tokenizer, self.folder = tokenizer, folder
        self.lm = nb.LM.new(
            "llama", tokenizer=tokenizer, num_layers=2, hidden_size=32, num_heads=2, max_positions=64, seed=1
        )
        self.lm.save(folder / "reference")

    def ours(self, method, rows, **settings):
        """Return the mean loss, the gradients, and the columns that trl is given."""
        config = TrainConfig(
            objective=METHODS[method].objective, objective_settings=settings, sequence_length=64, batch_size=2,
            precision="float32", device="cpu",
        )  # fmt: skip
        store = METHODS[method]().prepare(rows, self.lm, config).store
        with torch.no_grad():
            for number, parameter in enumerate(self.lm.model.parameters()):
                noise = torch.Generator().manual_seed(number)
                parameter += 0.02 * torch.randn(parameter.shape, generator=noise)
        self.lm.save(self.folder / "policy")
        objective = make_objective(config, self.tokenizer)
        columns = store.take(list(range(store.num_rows)))
        loss, count = objective.loss(self.lm.model, objective.batch(columns, np.random.default_rng(0)))
        (loss / count).backward()
        gradients = {name: parameter.grad for name, parameter in self.lm.model.named_parameters()}
        return loss.detach() / count, gradients, columns

    def theirs(self, name):
        return AutoModelForCausalLM.from_pretrained(self.folder / name)

    def gradients(self, model):
        """Return the gradients of transformers' model by our names."""
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(parameter.grad)
        model.save_pretrained(self.folder / "gradients")
        return dict(load_model(self.folder / "gradients").named_parameters())

    def check(self, ours, loss, model):
        """Compare with trl's loss of transformers' model."""
        assert abs(float(ours[0]) - float(loss.detach())) < 1e-5
        loss.backward()
        for name, theirs in self.gradients(model).items():
            torch.testing.assert_close(ours[1][name], theirs.detach(), rtol=1e-4, atol=1e-5)

    def trainer(self, kind, arguments, row, *, config, **options):
        """Return one of trl's trainers, made for data that it is not given."""
        made = arguments(
            output_dir=str(self.folder), report_to="none", per_device_train_batch_size=2, use_cpu=True,
            bf16=False, disable_tqdm=True, **config,
        )  # fmt: skip
        model = self.theirs("policy")
        data = Dataset.from_list([row, row])
        trainer = kind(model=model, args=made, processing_class=self.tokenizer, train_dataset=data, **options)
        model.eval()
        return trainer, model


def side(columns, name):
    """Return tokens, mask and where the answer is, as trl has them."""
    tokens = torch.from_numpy(columns[name])
    mask = torch.arange(tokens.shape[1]) < torch.from_numpy(columns[f"{name}_length"])[:, None]
    return tokens, mask.long(), torch.from_numpy((columns[f"{name}_targets"] != -100).astype(np.int64))


DPO_CASES = [
    ("dpo", "sigmoid", {}),
    ("dpo", "robust", {"robust": True, "label_smoothing": 0.1}),
    ("dpo", "aot", {"label_smoothing": 0.1}),  # of one pair it is cDPO, which trl has no more
    ("ipo", "ipo", {}),
]


@pytest.mark.parametrize(("method", "kind", "settings"), DPO_CASES, ids=[case[1] for case in DPO_CASES])
def test_dpo_and_its_variants(case, trl, pairs, method, kind, settings):
    rows = pairs[:1] if kind == "aot" else pairs
    ours = case.ours(method, rows, beta=0.3, **settings)
    trainer, model = case.trainer(
        trl.DPOTrainer, trl.DPOConfig, pairs[0], ref_model=case.theirs("reference"),
        config={"beta": 0.3, "loss_type": [kind], "label_smoothing": settings.get("label_smoothing", 0.0)},
    )  # fmt: skip
    parts = zip(*(side(ours[2], name) for name in ("chosen", "rejected")), strict=True)
    names = ("input_ids", "attention_mask", "completion_mask")
    batch = {name: torch.cat(both) for name, both in zip(names, parts, strict=True)}
    case.check(ours, trainer.compute_loss(trainer.model, batch), model)


@pytest.mark.parametrize("label", [None, True])
def test_kto(case, trl, pairs, label):
    labels = [True, False, True] if label is None else [label] * 3
    rows = [
        {"prompt": row["prompt"], "completion": row["chosen"], "label": good}
        for row, good in zip(pairs, labels, strict=True)
    ]
    ours = case.ours("kto", rows, beta=0.3, desirable_weight=0.8, undesirable_weight=1.3)
    trainer, model = case.trainer(
        trl.KTOTrainer, trl.KTOConfig, rows[0], ref_model=case.theirs("reference"),
        config={
            "beta": 0.3, "desirable_weight": 0.8, "undesirable_weight": 1.3,
            "train_sampling_strategy": "sequential",
        },
    )  # fmt: skip
    names = ("input_ids", "attention_mask", "completion_mask")
    batch = dict(zip(names, side(ours[2], "answer"), strict=True))
    batch |= {
        f"KL_{name}": each for name, each in zip(names, side(ours[2], "other"), strict=True)
    }  # the same answers to other prompts
    batch["label"] = torch.tensor(labels)
    case.check(ours, trainer.compute_loss(trainer.model, batch), model)


def of_pairs(columns):
    batch = {}
    for name in ("chosen", "rejected"):
        tokens, mask, answer = side(columns, name)
        batch |= {f"{name}_input_ids": tokens, f"{name}_attention_mask": mask}
        batch[f"{name}_labels"] = torch.where(answer == 1, tokens, -100)
    return batch


def test_orpo(case, trl, pairs):
    from trl.experimental.orpo import ORPOConfig, ORPOTrainer

    ours = case.ours("orpo", pairs, beta=0.3)
    trainer, model = case.trainer(ORPOTrainer, ORPOConfig, pairs[0], config={"beta": 0.3})
    loss, _ = trainer.get_batch_loss_metrics(model, of_pairs(ours[2]))
    case.check(ours, loss, model)


def test_simpo(case, trl, pairs):
    from trl.experimental.cpo import CPOConfig, CPOTrainer

    ours = case.ours("simpo", pairs, beta=2.0, gamma=0.7)
    settings = {"beta": 2.0, "simpo_gamma": 0.7, "loss_type": "simpo", "cpo_alpha": 0.0}
    trainer, model = case.trainer(CPOTrainer, CPOConfig, pairs[0], config=settings)
    loss, _ = trainer.get_batch_loss_metrics(model, of_pairs(ours[2]))
    case.check(ours, loss, model)
