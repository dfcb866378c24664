"""Methods of fine-tuning: found by name, their arguments checked, their objective's settings recorded and steered."""

import dataclasses
from typing import ClassVar

import pytest
import torch

import nbllm as nb
from nbllm.core.errors import UserError
from nbllm.data.sample_store import SampleStore, write_samples
from nbllm.finetuning import METHODS
from nbllm.finetuning.alignment.reference import Reference
from nbllm.finetuning.supervised import Supervised
from nbllm.objectives import OBJECTIVES, SupervisedFineTuning
from nbllm.runs.settings import Setting
from nbllm.training.config import TrainConfig

CHATS = [
    [{"role": "user", "content": f"Say {word}"}, {"role": "assistant", "content": word * 2}]
    for word in ("one", "two", "six", "ten")
]
SMALL = {
    "batch_size": 2, "sequence_length": 48, "sample_interval": 0, "precision": "float32", "num_threads": 1,
    "lr": 1e-2, "checkpoint_interval": 2,
}  # fmt: skip


@OBJECTIVES.register("test_anchored")
class Anchored(SupervisedFineTuning):
    """Supervised fine-tuning with a share of the distance to what the reference predicts; counts its steps."""

    only_examples = True
    settings = (Setting(name="share", low=0.0, high=10.0, default=0.5, help="Of the distance."),)
    options: ClassVar = {"kind": "square", "twice": False}

    def begin_with(self, network):
        self.reference, self.count = Reference(network), torch.zeros(1)

    def state_tensors(self):
        return {"count": self.count, **self.reference.tensors()}

    def load_state_tensors(self, tensors, network):
        self.count = tensors.pop("count")
        self.reference = Reference(network, tensors)

    def loss(self, network, batch):
        with self.reference.active():
            anchor = network.hidden(batch["inputs"])
        loss, count = super().loss(network, batch)
        if torch.is_grad_enabled():
            self.count += 1
        distance = (network.hidden(batch["inputs"]) - anchor).square().sum()
        return loss + self.values["share"] * distance * (2 if self.values["twice"] else 1), count


@METHODS.register("test_anchored")
@dataclasses.dataclass(frozen=True, kw_only=True)
class AnchoredMethod(Supervised):
    objective = "test_anchored"


@pytest.fixture(scope="module")
def tokenizer():
    return nb.data.train_tokenizer(nb.data.load("pydocs").select(range(2)), vocab_size=300)


@pytest.fixture
def lm(tokenizer):
    return nb.LM.new(
        "llama", tokenizer=tokenizer, num_layers=1, hidden_size=16, num_heads=2, max_positions=64
    )


def test_a_method_of_ones_own_is_recorded_steered_resumed_and_replayed(lm, tmp_path):
    run = nb.finetune(
        lm, CHATS, method="test_anchored", share=0.25, twice=True, train_on="answer", steps=6,
        adapter=nb.LoRA(rank=2), folder=tmp_path, name="own", **SMALL,
    )  # fmt: skip
    run.wait(progress=False)
    assert (run.config["share"], run.config["twice"], run.config["kind"]) == (0.25, True, "square")
    assert "share" in {setting.name for setting in run.settings}
    fork = run.fork("fork", step=4, steps=6)  # the count and the reference come from the checkpoint
    fork.wait(progress=False)
    one, two = nb.load(run), nb.load(fork)
    assert all(torch.equal(one.model.state_dict()[n], v) for n, v in two.model.state_dict().items())
    other = run.fork("other", step=4, steps=6, share=0.0).wait(progress=False)
    theirs = nb.load(other).model.state_dict()
    assert any(not torch.equal(theirs[n], v) for n, v in two.model.state_dict().items())
    assert nb.replay(run, progress=False).identical


def test_settings_and_options_are_checked(lm, tmp_path):
    for wrong, said in (
        ({"share": -1.0}, "share"),
        ({"twice": 1}, "twice"),
        ({"kind": True}, "kind"),
        ({"shar": 1.0}, "shar"),
        ({"train_on": "nothing"}, "train_on"),
        ({"objective": "sft"}, "settled"),
        ({"method": "test_anchord"}, "test_anchord"),
    ):
        with pytest.raises(UserError, match=said):
            nb.finetune(
                lm, CHATS, folder=tmp_path, **{"method": "test_anchored", "steps": 2, **SMALL, **wrong}
            )
    with pytest.raises(UserError, match="share"):
        nb.finetune(lm, CHATS, folder=tmp_path, share=0.5, steps=2)
    with pytest.raises(UserError, match="examples that are prepared"):
        nb.train(lm, ["Some text. " * 50], objective="test_anchored", folder=tmp_path, steps=2)
    plain = TrainConfig(objective="test_anchored", objective_settings={"share": 0.125}).to_dict()
    assert plain["share"] == 0.125 and "objective_settings" not in plain
    assert TrainConfig.from_dict(plain).to_dict() == plain
    assert lm.adapters == () and not list(tmp_path.iterdir())


@torch.no_grad()
def test_the_reference_is_what_the_run_began_with(lm):
    ids = torch.tensor([[3, 7, 5, 9]])
    base = lm.model(ids)
    adapter = lm.attach(nb.LoRA(rank=2))
    torch.nn.init.normal_(next(each for name, each in adapter.parameters().items() if "lora_b" in name))
    trained_before = lm.model(ids)
    assert not torch.equal(base, trained_before)
    reference = Reference(lm.model)
    assert reference.tensors().keys() == adapter.parameters().keys()
    for parameter in adapter.parameters().values():
        parameter.add_(1.0)
    now = lm.model(ids)
    with reference.active():
        assert torch.equal(lm.model(ids), trained_before)  # an adapter that was on stays on
    assert torch.equal(lm.model(ids), now)
    lm.model.blocks[0].feed_forward.down.weight.requires_grad_(True)  # unfrozen while the run goes on
    reference.note_trained()
    lm.model.blocks[0].feed_forward.down.weight.data.add_(1.0)
    with reference.active():
        assert torch.equal(lm.model(ids), trained_before)


def test_columns_are_kept_as_they_are(tmp_path):
    columns = {
        "tokens": torch.arange(12, dtype=torch.int32).reshape(3, 4).numpy(),
        "weight": torch.tensor([0.5, 1.0, 2.0]).numpy(),
    }
    about = {"row_length": 4, "num_examples": 3, "num_bytes": 9, "vocab_size": 20}
    store = write_samples(columns, **about, folder=tmp_path)
    again = SampleStore.open(store.path)
    assert again.take([2])["weight"].tolist() == [2.0] and again.num_tokens == 12
    assert again.windows(torch.tensor([4]).numpy(), 4)["tokens"].tolist() == [[4, 5, 6, 7]]
    assert write_samples(columns, **about, folder=tmp_path).fingerprint == store.fingerprint
    other = {**columns, "weight": columns["weight"] * 2}
    assert write_samples(other, **about, folder=tmp_path).fingerprint != store.fingerprint
